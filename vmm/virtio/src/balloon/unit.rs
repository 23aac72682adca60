//! Takes pages from the driver, hands them back, and keeps its statistics.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use super::discard::{Discarder, Outcome};
use super::wire::{FRAME_SIZE, PAGE_SIZE, STAT_NAMES, STAT_SIZE};
use super::{Shared, Statistics};
use crate::{Chain, Interest, Queue, QueueError, Source, Unit, UnitError};

/// Page frame numbers in one chain. Linux sends 256.
pub(super) const CHAIN_FRAMES_MAX: u32 = 4096;
/// Statistics in one chain: tags that are not known yet leave room.
const CHAIN_STATS_MAX: u32 = 64;
/// Chains in a row, before others get their turn.
const CHAINS_MAX: u32 = 16;
/// Frame numbers copied at a time.
const FRAMES_PIECE: u32 = 256;

/// Token of the wake-up.
pub(super) const WAKE: u32 = 0;

/// Serves all queues.
pub(super) struct BalloonUnit {
    pub(super) shared: Arc<Shared>,
    pub(super) discarder: Discarder,
    pub(super) inflate: Queue,
    pub(super) deflate: Queue,
    pub(super) statistics: Option<StatisticsQueue>,
    pub(super) reporting: Option<Queue>,
    /// A budget was used up.
    pub(super) resume: Option<Instant>,
    pub(super) chain: Chain,
    pub(super) frames: Vec<u64>,
}

/// The statistics queue: the driver's one buffer stays here until new ones are wanted.
pub(super) struct StatisticsQueue {
    queue: Queue,
    held: Option<u16>,
    due: Option<Instant>,
}

impl StatisticsQueue {
    pub(super) const fn new(queue: Queue) -> Self {
        Self { queue, held: None, due: None }
    }
}

/// Which of the queues that carry pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    Inflate,
    Deflate,
    Reporting,
}

impl BalloonUnit {
    /// Serves a queue of pages, [`CHAINS_MAX`] chains at most.
    fn serve(&mut self, pages: Pages) -> Result<(), UnitError> {
        let mut count = 0;
        loop {
            if count == CHAINS_MAX {
                self.resume = Some(Instant::now());
                break;
            }
            let Some(queue) =
                queue_of(pages, &mut self.inflate, &mut self.deflate, &mut self.reporting)
            else {
                return Ok(());
            };
            if queue.pop(&mut self.chain)? {
                match pages {
                    Pages::Inflate => self.inflate_chain()?,
                    Pages::Deflate => self.deflate_chain(),
                    Pages::Reporting => self.report_chain(),
                }
                let head = self.chain.head();
                self.queue_mut(pages).map_or(Ok(()), |queue| queue.push(head, 0))?;
                count += 1;
            } else if !queue.rearm()? {
                break;
            }
        }
        self.queue_mut(pages).map_or(Ok(()), Queue::notify)
    }

    fn queue_mut(&mut self, pages: Pages) -> Option<&mut Queue> {
        queue_of(pages, &mut self.inflate, &mut self.deflate, &mut self.reporting)
    }

    /// §5.5.6: an array of page frame numbers, whose pages the guest does without.
    fn inflate_chain(&mut self) -> Result<(), UnitError> {
        let queue = &self.inflate;
        let readable = self.chain.readable(queue.memory());
        let (size, index) = (self.chain.readable_size(), queue.index());
        if !size.is_multiple_of(FRAME_SIZE) || size / FRAME_SIZE > CHAIN_FRAMES_MAX {
            let what = format!(
                "queue {index}: {size} bytes are no array of 1 to {CHAIN_FRAMES_MAX} page frames"
            );
            return Err(UnitError::Guest(what));
        }
        self.frames.clear();
        let mut piece = [0; (FRAMES_PIECE * FRAME_SIZE) as usize];
        let mut done = 0;
        while done < size {
            let length = (size - done).min(FRAMES_PIECE * FRAME_SIZE);
            let bytes = &mut piece[..usize::try_from(length).unwrap_or(0)];
            let result = readable.read(done, bytes, "page frames");
            result.map_err(|source| UnitError::Queue { index, source })?;
            let (frames, _) = bytes.as_chunks::<4>();
            self.frames.extend(frames.iter().map(|frame| u64::from(u32::from_le_bytes(*frame))));
            done += length;
        }
        self.shared.inflated.add(self.frames.len() as u64);
        self.discard_frames()
    }

    /// Discards the pages of `frames`, a call for each run of neighbours.
    fn discard_frames(&mut self) -> Result<(), UnitError> {
        self.frames.sort_unstable();
        for run in self.frames.chunk_by(|one, next| next - one <= 1) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let range = first * PAGE_SIZE..(last + 1) * PAGE_SIZE;
            if !self.discarder.covers(&range) {
                let index = self.inflate.index();
                let what =
                    format!("queue {index}: page frames {first} to {last} are not all in memory");
                return Err(UnitError::Guest(what));
            }
            let outcome = self.discarder.discard(self.inflate.memory(), &range);
            self.shared.count(outcome);
        }
        Ok(())
    }

    /// The guest takes pages back. They come back when it touches them: nothing to do.
    fn deflate_chain(&self) {
        self.shared.deflated.add(u64::from(self.chain.readable_size() / FRAME_SIZE));
    }

    /// §5.5.6.7: the buffers themselves are free pages. What is not writable is none.
    fn report_chain(&self) {
        let Some(queue) = &self.reporting else { return };
        // Free pages that hold a pattern must keep it; ours would be zeros.
        if self.shared.poison() != 0 {
            return;
        }
        for segment in self.chain.writable(queue.memory()).segments() {
            let start = segment.address.0;
            let range = start..start.saturating_add(u64::from(segment.size));
            let outcome = self.discarder.discard(queue.memory(), &range);
            self.shared.reported.add(outcome.discarded);
            self.shared.count(outcome);
        }
    }
}

fn queue_of<'a>(
    pages: Pages,
    inflate: &'a mut Queue,
    deflate: &'a mut Queue,
    reporting: &'a mut Option<Queue>,
) -> Option<&'a mut Queue> {
    match pages {
        Pages::Inflate => Some(inflate),
        Pages::Deflate => Some(deflate),
        Pages::Reporting => reporting.as_mut(),
    }
}

impl StatisticsQueue {
    /// §5.5.6.3: the driver sends its buffer, filled.
    fn receive(&mut self, chain: &mut Chain, shared: &Shared) -> Result<(), UnitError> {
        loop {
            if !self.queue.pop(chain)? {
                if self.queue.rearm()? {
                    continue;
                }
                break;
            }
            shared.set_statistics(self.parse(chain)?);
            if self.held.replace(chain.head()).is_some() {
                // §5.5.6.3.1.
                let index = self.queue.index();
                let what = format!("queue {index}: a second buffer for statistics");
                return Err(UnitError::Guest(what));
            }
        }
        self.plan(shared);
        Ok(())
    }

    fn parse(&self, chain: &Chain) -> Result<Statistics, UnitError> {
        let (size, index) = (chain.readable_size(), self.queue.index());
        if size / STAT_SIZE > CHAIN_STATS_MAX {
            let what = format!("queue {index}: {size} bytes of statistics");
            return Err(UnitError::Guest(what));
        }
        let readable = chain.readable(self.queue.memory());
        let mut statistics = Statistics::default();
        for i in 0..size / STAT_SIZE {
            let mut bytes = [0; STAT_SIZE as usize];
            let result = readable.read(i * STAT_SIZE, &mut bytes, "a statistic");
            result.map_err(|source: QueueError| UnitError::Queue { index, source })?;
            let [t0, t1, value @ ..] = bytes;
            let tag = usize::from(u16::from_le_bytes([t0, t1]));
            if tag < STAT_NAMES.len() {
                statistics.values[tag] = Some(u64::from_le_bytes(value));
            }
        }
        statistics.received = Some(Instant::now());
        Ok(statistics)
    }

    /// Says when the buffer goes back.
    fn plan(&mut self, shared: &Shared) {
        let interval = shared.interval().filter(|_| self.held.is_some());
        self.due = interval.map(|interval| Instant::now() + interval);
    }

    /// Gives the buffer back, for the driver to fill it again.
    fn ask(&mut self, now: Instant) -> Result<(), UnitError> {
        if self.due.is_none_or(|due| now < due) {
            return Ok(());
        }
        self.due = None;
        if let Some(head) = self.held.take() {
            self.queue.push(head, 0)?;
            self.queue.notify()?;
        }
        Ok(())
    }

    fn stop(mut self) -> Queue {
        if self.held.is_some() {
            self.queue.unpop();
        }
        self.queue
    }
}

impl Unit for BalloonUnit {
    fn sources(&self) -> Vec<Source> {
        let descriptor = self.shared.wake.as_raw_fd();
        vec![Source { descriptor, token: WAKE, interest: Interest::Read }]
    }

    fn queues(&self) -> Vec<&Queue> {
        let statistics = self.statistics.as_ref().map(|statistics| &statistics.queue);
        let pages = [&self.inflate, &self.deflate];
        pages.into_iter().chain(statistics).chain(&self.reporting).collect()
    }

    fn kicked(&mut self, index: u16) -> Result<(), UnitError> {
        if let Some(statistics) = &mut self.statistics
            && statistics.queue.index() == index
        {
            return statistics.receive(&mut self.chain, &self.shared);
        }
        if index == self.inflate.index() {
            self.serve(Pages::Inflate)
        } else if index == self.deflate.index() {
            self.serve(Pages::Deflate)
        } else {
            self.serve(Pages::Reporting)
        }
    }

    fn ready(&mut self, _token: u32) -> Result<(), UnitError> {
        // The count does not matter, nor whether there is one.
        let _ = self.shared.wake.read();
        if let Some(statistics) = &mut self.statistics {
            statistics.plan(&self.shared);
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let statistics = self.statistics.as_ref().and_then(|statistics| statistics.due);
        statistics.into_iter().chain(self.resume).min()
    }

    fn expired(&mut self, now: Instant) -> Result<(), UnitError> {
        if let Some(statistics) = &mut self.statistics {
            statistics.ask(now)?;
        }
        if self.resume.is_some_and(|at| at <= now) {
            self.resume = None;
            for pages in [Pages::Inflate, Pages::Deflate, Pages::Reporting] {
                self.serve(pages)?;
            }
        }
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        let statistics = self.statistics.map(StatisticsQueue::stop);
        let pages = [self.inflate, self.deflate];
        pages.into_iter().chain(statistics).chain(self.reporting).collect()
    }
}

impl Shared {
    fn count(&self, outcome: Outcome) {
        self.discarded.add(outcome.discarded);
        self.failed.add(outcome.failed);
    }
}
