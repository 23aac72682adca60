//! One at a time, by name: who works on something holds up those who want the same, and nobody else.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Names that are being worked on: as many at most as there are threads that work.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Mutex<BTreeSet<String>>,
    freed: Condvar,
}

/// The right to work on something, until it is dropped.
#[must_use]
pub(crate) struct Held<'a> {
    locks: &'a Locks,
    name: String,
}

impl Locks {
    /// Waits until nobody works on that.
    pub(crate) fn hold(&self, name: impl Into<String>) -> Held<'_> {
        let name = name.into();
        let is_held = |held: &mut BTreeSet<String>| held.contains(&name);
        let held = self.freed.wait_while(self.held(), is_held);
        held.unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Held { locks: self, name }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Nothing that could panic is done with it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.locks.held().remove(&self.name);
        self.locks.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_wants_the_same_waits_and_nobody_else_does() {
        let locks = Locks::default();
        let first = locks.hold("a");
        // With fewer locks than names, two of these would be one.
        let others: Vec<_> = (0..1000).map(|number| locks.hold(number.to_string())).collect();
        std::thread::scope(|scope| {
            let ((got, gets), locks) = (mpsc::channel(), &locks);
            scope.spawn(move || {
                let held = locks.hold("a");
                got.send(()).unwrap();
                drop(held);
            });
            assert!(gets.recv_timeout(Duration::from_millis(50)).is_err());
            drop(first);
            gets.recv_timeout(Duration::from_secs(20)).unwrap();
        });
        drop(others);
        assert!(locks.held().is_empty());
    }
}
