//! What a running node says, and in which form: lines on stderr.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing::Level;

/// How much a node says.
#[derive(Args)]
pub(crate) struct LogArguments {
    /// Say more: routes, and each dial that fails
    #[arg(short = 'd', long)]
    debug: bool,
    /// Say nothing but warnings and errors
    #[arg(long, conflicts_with = "debug")]
    silent: bool,
    /// Form of lines
    #[arg(long, value_name = "FORM", default_value = "compact")]
    log_format: LogFormat,
}

/// Form of lines.
#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Colours on a terminal
    Compact,
    /// No colours, and where a line comes from
    Plain,
}

/// Begins to write what is said to stderr.
pub(crate) fn start(arguments: &LogArguments) {
    let level = match (arguments.debug, arguments.silent) {
        (true, _) => Level::DEBUG,
        (_, true) => Level::WARN,
        _ => Level::INFO,
    };
    let has_colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
    match arguments.log_format {
        LogFormat::Compact => lines.with_target(false).with_ansi(has_colours).compact().init(),
        LogFormat::Plain => lines.with_ansi(false).init(),
    }
}
