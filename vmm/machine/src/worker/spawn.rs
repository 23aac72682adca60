//! Threads that are set up before they do anything.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use super::ThreadSetup;

/// Starts a thread called `name` (of which the kernel shows 15 bytes), and waits until `setup` is
/// through; then it does its `work`.
///
/// # Errors
/// When there is no thread, or it cannot be set up: it has ended then, and done nothing.
pub(crate) fn spawn(
    name: &str,
    stack_size: usize,
    setup: &ThreadSetup,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (ready, is_ready) = sync_channel(1);
    let (own_name, setup) = (name.to_owned(), ThreadSetup::clone(setup));
    let builder = Builder::new().name(name.to_owned()).stack_size(stack_size);
    let handle = builder.spawn(move || {
        let result = setup(&own_name);
        let is_set_up = result.is_ok();
        // Nobody waits any more only if the process ends.
        let is_told = ready.send(result).is_ok();
        drop((ready, setup, own_name));
        if is_set_up && is_told {
            work();
        }
    })?;
    is_ready.recv().map_err(|_| io::Error::other("a thread ended early"))??;
    Ok(handle)
}
