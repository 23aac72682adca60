//! Followers: clients that get every write of a namespace, in order (`REPL`).
//!
//! A follower says which write it has last, and gets all that come after it, each with its number, for
//! as long as it stays connected. Only what survives a power loss here is sent. It tells from time to
//! time what it has made durable itself; what the slowest one has is what compaction must keep the
//! deletions of, and what `--semi-sync` waits for.

use std::ops::ControlFlow;

use zdb_engine::{Change, LogRecord, SeqNo};
use zdb_resp::write;

use super::{Core, Entry, Follower, NamespaceId};
use crate::output::Output;
use crate::refusal::{Refusal, common};
use crate::session::Session;

/// Most followers of a namespace.
pub(crate) const FOLLOWER_COUNT_MAX: usize = 16;
/// A follower gets more only while less than this is unsent, in bytes.
const UNSENT_SIZE_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of the log that are read at once.
const READ_SIZE: u64 = 1024 * 1024;

impl Core {
    /// Makes a client a follower of the writes after `after`.
    pub(crate) fn follow(
        &mut self,
        session: &mut Session,
        id: NamespaceId,
        after: SeqNo,
    ) -> Result<(), Refusal> {
        let entry = self.namespaces.get_mut(id).ok_or("Namespace not found")?;
        entry.loaded()?;
        if entry.followers.len() >= FOLLOWER_COUNT_MAX {
            return Err(format!("Too many followers, at most {FOLLOWER_COUNT_MAX}").into());
        }
        entry.followers.push(Follower { client: session.client, sent: after, has: after });
        session.follows = Some(id);
        self.follower_count += 1;
        self.hold_for_followers(id);
        Ok(())
    }

    /// Takes a follower's word for what it has.
    pub(crate) fn follower_has(&mut self, session: &Session, has: SeqNo) -> Result<(), Refusal> {
        let id = session.follows.ok_or("Not a follower")?;
        let entry = self.namespaces.get_mut(id).ok_or(crate::commands::DETACHED)?;
        let mut followers = entry.followers.iter_mut();
        let follower = followers.find(|follower| follower.client == session.client);
        let follower = follower.ok_or("Not a follower")?;
        follower.has = has.min(follower.sent).max(follower.has);
        self.hold_for_followers(id);
        Ok(())
    }

    /// Clients that follow some namespace and have not got all of it.
    #[must_use]
    pub fn lagging_followers(&self) -> Vec<super::ClientId> {
        let entries = self.namespaces.entries().filter(|entry| !entry.followers.is_empty());
        let lagging = entries.flat_map(|entry| {
            let newest = entry.namespace.as_ref().map_or(SeqNo(0), |space| space.acknowledged());
            entry.followers.iter().filter(move |follower| follower.sent < newest)
        });
        lagging.map(|follower| follower.client).collect()
    }

    /// Whether there is any follower.
    #[must_use]
    pub fn has_followers(&self) -> bool {
        self.follower_count > 0
    }

    /// Gives a follower more writes, if it took those before.
    pub fn feed(&mut self, session: &mut Session, output: &mut Output) {
        while output.unsent_size() < UNSENT_SIZE_MAX {
            match self.feed_once(session, output) {
                Ok(true) => {}
                Ok(false) => return,
                Err(refusal) => {
                    write::error(output.buffer(), refusal.text.as_bytes());
                    session.is_closing = true;
                    return;
                }
            }
        }
    }

    /// Whether there may be more.
    fn feed_once(&mut self, session: &Session, output: &mut Output) -> Result<bool, Refusal> {
        let Some(id) = session.follows else { return Ok(false) };
        let entry = self.namespaces.get_mut(id).ok_or(crate::commands::DETACHED)?;
        if entry.is_away() {
            return Ok(false);
        }
        let namespace = entry.namespace.as_mut().map_err(|absence| absence.refusal())?;
        let newest = namespace.acknowledged();
        let mut followers = entry.followers.iter_mut();
        let Some(follower) = followers.find(|follower| follower.client == session.client) else {
            return Ok(false);
        };
        if follower.sent >= newest {
            return Ok(false);
        }
        let out = output.buffer();
        let mut shown = follower.sent;
        let mut show = |record: LogRecord<'_>| {
            write_record(out, &record);
            shown = record.seq;
            ControlFlow::Continue(())
        };
        let complete = namespace.read_log(follower.sent, READ_SIZE, &mut show);
        let complete = complete.map_err(|error| common(&error, "Cannot read the log"))?;
        let went_on = complete > follower.sent;
        follower.sent = complete;
        if went_on && complete > shown {
            write_mark(output.buffer(), complete);
        }
        Ok(went_on)
    }

    /// Tells the engine what its followers have.
    pub(crate) fn hold_for_followers(&mut self, id: NamespaceId) {
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        let slowest = entry.followers.iter().map(|follower| follower.has).min();
        if let Ok(namespace) = &mut entry.namespace {
            namespace.hold(slowest);
        }
    }

    /// The newest write that enough followers have. With fewer followers than asked for, replies do
    /// not wait for any: a lone server serves.
    pub(crate) fn followed(&self, entry: &Entry) -> SeqNo {
        let wanted = self.policy.follower_count_min;
        if wanted == 0 || entry.followers.len() < wanted {
            return SeqNo(u64::MAX);
        }
        let mut has: Vec<SeqNo> = entry.followers.iter().map(|follower| follower.has).collect();
        has.sort_unstable_by(|left, right| right.cmp(left));
        has.get(wanted - 1).copied().unwrap_or_default()
    }
}

/// A write, as followers get it.
fn write_record(out: &mut Vec<u8>, record: &LogRecord<'_>) {
    let seq = i64::try_from(record.seq.0).unwrap_or(i64::MAX);
    match record.change {
        Change::Set { key, value, timestamp } => {
            write::array(out, 5);
            write::integer(out, seq);
            write::bulk(out, b"SET");
            write::bulk(out, key);
            write::bulk(out, value);
            write::integer(out, timestamp.into());
        }
        Change::Delete { key, timestamp } => {
            write::array(out, 4);
            write::integer(out, seq);
            write::bulk(out, b"DEL");
            write::bulk(out, key);
            write::integer(out, timestamp.into());
        }
        Change::Clear => {
            write::array(out, 2);
            write::integer(out, seq);
            write::bulk(out, b"FLUSH");
        }
    }
}

/// Says that all writes up to a number were sent: the missing ones are of no more use.
fn write_mark(out: &mut Vec<u8>, seq: SeqNo) {
    write::array(out, 2);
    write::integer(out, i64::try_from(seq.0).unwrap_or(i64::MAX));
    write::bulk(out, b"AT");
}
