//! A handful of threads over a list of work: what unpack, verify and clone have in common.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Most threads; beyond that, stores on a network are busy enough.
const WORKER_COUNT_MAX: usize = 64;
/// Fewest, even on one core: while one waits for a store, another decodes.
const WORKER_COUNT_MIN: usize = 2;

/// The number of threads that was asked for, or one for each core, within bounds.
pub(crate) fn count(wanted: Option<NonZeroUsize>) -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    wanted.map_or_else(|| cores().max(WORKER_COUNT_MIN), NonZeroUsize::get).min(WORKER_COUNT_MAX)
}

/// Calls `work` for every item, in their order as far as `count` threads allow; each thread has a
/// state of its own. After the first error, which is returned, no thread takes another item.
pub(crate) fn each<T: Sync, S: Default, E: Send>(
    count: usize,
    items: &[T],
    work: impl Fn(&mut S, &T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut state = S::default();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(&mut state, item) {
                next.store(items.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..count.clamp(1, items.len().max(1)))
            .map(|number| {
                let builder = thread::Builder::new().name(format!("worker-{number}"));
                builder.spawn_scoped(scope, run)
            })
            .collect();
        // Without a single thread the work is done here.
        if workers.iter().all(Result::is_err) {
            return run();
        }
        let joined = workers.into_iter().flatten().map(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_item_once_and_a_first_error_ends_it() {
        let items: Vec<usize> = (0..1000).collect();
        let seen = Mutex::new(Vec::new());
        let work = |_: &mut (), item: &usize| {
            seen.lock().unwrap().push(*item);
            Ok::<_, ()>(())
        };
        each(4, &items, work).unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, items);
        let failed = each(4, &items, |taken: &mut usize, item| {
            *taken += 1;
            if *item == 5 { Err("five") } else { Ok(()) }
        });
        assert_eq!(failed, Err("five"));
        each(4, &[], |_: &mut (), _: &u8| Err("nothing to do")).unwrap();
    }
}
