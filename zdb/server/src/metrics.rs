//! Figures about the server since its start.

use std::time::Duration;

use crate::commands::{COMMAND_COUNT, CommandId};
use crate::refusal::Refusal;

/// Buckets of a histogram. Bucket `n` counts what took less than 2^n microseconds, the last one the
/// rest: the longest that is told apart is half an hour.
pub(crate) const BUCKET_COUNT: usize = 32;

/// How long something took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Histogram {
    pub(crate) buckets: [u64; BUCKET_COUNT],
    pub(crate) sum: Duration,
    pub(crate) count: u64,
}

/// About one command.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CommandMetrics {
    pub(crate) latency: Histogram,
    pub(crate) failed_count: u64,
}

/// About the whole server.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) commands: Vec<CommandMetrics>,
    pub(crate) unknown_count: u64,
    pub(crate) unauthorized_count: u64,
    /// Clients that ever came.
    pub(crate) client_count: u64,
    /// Clients that are here.
    pub(crate) connected_count: u64,
    /// Clients that were turned away, or whose connection we ended, for want of memory or files.
    pub(crate) refused_count: u64,
    pub(crate) received_size: u64,
    pub(crate) sent_size: u64,
    pub(crate) syncs: Histogram,
    pub(crate) commit_failed_count: u64,
    pub(crate) scrub_count: u64,
    /// Bytes of clients' buffers.
    pub(crate) buffer_size: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            commands: vec![CommandMetrics::default(); COMMAND_COUNT],
            unknown_count: 0,
            unauthorized_count: 0,
            client_count: 0,
            connected_count: 0,
            refused_count: 0,
            received_size: 0,
            sent_size: 0,
            syncs: Histogram::default(),
            commit_failed_count: 0,
            scrub_count: 0,
            buffer_size: 0,
        }
    }
}

impl Metrics {
    /// Counts a command that was done, or refused.
    pub(crate) fn note(
        &mut self,
        command: Option<CommandId>,
        took: Duration,
        refusal: Option<&Refusal>,
    ) {
        if let Some(refusal) = refusal {
            self.unauthorized_count += u64::from(refusal.is_unauthorized);
        }
        match command.and_then(|command| self.commands.get_mut(command.index())) {
            Some(command) => {
                command.latency.record(took);
                command.failed_count += u64::from(refusal.is_some());
            }
            None => self.unknown_count += 1,
        }
    }

    /// Commands that were done or refused.
    pub(crate) fn executed_count(&self) -> u64 {
        self.commands.iter().map(|command| command.latency.count).sum::<u64>() + self.unknown_count
    }

    /// Commands that were refused.
    pub(crate) fn failed_count(&self) -> u64 {
        self.commands.iter().map(|command| command.failed_count).sum::<u64>() + self.unknown_count
    }
}

impl Histogram {
    /// Counts one more.
    pub(crate) fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(BUCKET_COUNT);
        if let Some(bucket) = self.buckets.get_mut(bucket.min(BUCKET_COUNT - 1)) {
            *bucket += 1;
        }
        self.sum += took;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let mut histogram = Histogram::default();
        for micros in [0, 1, 2, 3, 4, 1 << 40] {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!(histogram.buckets[..4], [1, 1, 2, 1]);
        assert_eq!(histogram.buckets[BUCKET_COUNT - 1], 1);
        assert_eq!(histogram.count, 6);
    }
}
