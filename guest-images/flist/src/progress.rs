//! How long work tells a person where it stands, and how a person stops it.
//!
//! Library functions that may take longer than a blink take a [`Progress`]. They call
//! [`Progress::check`] between steps, so that Ctrl-C becomes an ordinary error and the usual cleaning
//! up (temporary files, sockets) happens on the way out.

/// Hears of progress, and may ask to stop. Called from several threads.
pub trait Progress: Sync {
    /// A new piece of work begins: what (`"packing"`), and how many bytes it will be about.
    fn begin(&self, what: &str, bytes: u64);

    /// `bytes` more are done.
    fn advance(&self, bytes: u64);

    /// Something to tell a person without breaking the progress bar: a bad block, a skipped route.
    fn note(&self, text: &str);

    /// An error if the user asked to stop.
    ///
    /// # Errors
    /// [`Cancelled`].
    fn check(&self) -> Result<(), Cancelled>;
}

/// The user asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

/// Nobody listens, nobody stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _what: &str, _bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn note(&self, _text: &str) {}

    fn check(&self) -> Result<(), Cancelled> {
        Ok(())
    }
}
