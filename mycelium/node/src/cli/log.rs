//! What a running node says, and in which form: lines on stderr.

use std::fmt;
use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

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
    /// key=value pairs, for programs
    Logfmt,
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
        LogFormat::Logfmt => lines.event_format(Logfmt).init(),
        LogFormat::Plain => lines.with_ansi(false).init(),
    }
}

/// `level=info target=… message="…" key=value`.
struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        write!(writer, "level={level} target={}", metadata.target())?;
        // Which instance it is about, where there are several.
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                write!(writer, " {fields}")?;
            }
        }
        let mut pairs = Pairs { writer: &mut writer, result: Ok(()) };
        event.record(&mut pairs);
        pairs.result?;
        writeln!(writer)
    }
}

/// Writes fields as pairs.
struct Pairs<'a, 'b> {
    writer: &'a mut Writer<'b>,
    result: fmt::Result,
}

impl Visit for Pairs<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.pair(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.pair(field, &format!("{value:?}"));
    }
}

impl Pairs<'_, '_> {
    fn pair(&mut self, field: &Field, value: &str) {
        let value = quoted(value);
        self.result = self.result.and_then(|()| write!(self.writer, " {}={value}", field.name()));
    }
}

/// A value, in quotes where it needs them.
fn quoted(value: &str) -> String {
    let is_plain = !value.is_empty()
        && !value.contains(|c: char| c.is_whitespace() || c.is_control() || "\"=".contains(c));
    if is_plain { value.to_owned() } else { format!("{value:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_spaces_are_quoted() {
        assert_eq!(quoted("tcp://[::1]:1"), "tcp://[::1]:1");
        assert_eq!(quoted("a \"b\""), "\"a \\\"b\\\"\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
