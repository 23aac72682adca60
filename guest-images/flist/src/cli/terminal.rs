//! Progress bars on a terminal, silence elsewhere, and Ctrl-C as an orderly stop.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use flist::progress::{Cancelled, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

/// The signal that asked running work to stop; 0 for none.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// Shows progress on standard error when that is a terminal; a first Ctrl-C or SIGTERM asks running
/// work to stop, after which [`end_as_signalled`] ends the process; a second one ends it at once.
pub(crate) struct Terminal {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Terminal {
    /// Installs the signal handlers.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let number = signal.unsigned_abs() as usize;
            // The order matters: the second signal finds `stop` set and ends the process.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
            signal_hook::flag::register_usize(signal, Arc::clone(&SIGNAL), number)?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style =
            "{msg:10} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} eta {eta:>4}";
        bar.set_style(ProgressStyle::with_template(style)?);
        Ok(Self { bar, stop })
    }

    /// Removes the bar, so that results stand alone.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Ends the process as the signal that stopped its work would have: whoever started it sees that it
/// was interrupted (a shell says 130 for Ctrl-C), and a script stops. Returns if there was no signal.
pub(crate) fn end_as_signalled() {
    if let Ok(signal @ 1..) = i32::try_from(SIGNAL.load(Ordering::Relaxed)) {
        // If the system refuses, the ordinary exit code has to do.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
}

/// Prints results. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

impl Progress for Terminal {
    fn begin(&self, what: &str, bytes: u64) {
        self.bar.reset();
        self.bar.set_length(bytes);
        self.bar.set_message(what.to_owned());
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("flist: {text}"));
    }

    fn check(&self) -> Result<(), Cancelled> {
        if self.stop.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }
}
