//! What a machine knows of one peer: its sessions, and the handshake under way.

use std::sync::Arc;

use super::established::{Activity, Session, index};
use super::limits::{
    ANSWER_WAIT_MAX, CONFIRM_AFTER, IN_USE, PAUSE_MAX, PAUSE_MAX_PROVED, PAUSE_MIN, REKEY_AFTER,
    REKEY_AFTER_AS_RESPONDER, REKEY_AFTER_PACKETS, RESEND_AFTER, SILENCE_MAX,
};
use super::packet::COOKIE_SIZE;
use super::time::{Stamp, Time};
use crate::noise::Initiator;

/// The sessions of a peer that are alive: the one to send with, older ones whose packets are still under
/// way, and one that the peer has begun but not used yet.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    current: Option<Arc<Session>>,
    next: Option<Arc<Session>>,
    older: [Option<Arc<Session>>; OLDER_COUNT],
}

/// When both ends begin at once, each has two sessions to give up and one that it did not get to use.
const OLDER_COUNT: usize = 3;

impl Ring {
    /// The session to send with.
    #[must_use]
    pub const fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// The session that packets with this index are of.
    #[must_use]
    pub fn by_index(&self, index: u32) -> Option<&Arc<Session>> {
        self.all().find(|session| session.index() == index)
    }

    /// Whether a body begins as those do that this end sealed with one of these.
    #[must_use]
    pub fn has_sealed(&self, body: &[u8]) -> bool {
        let index = index(body);
        self.all().any(|session| index == Some(session.peer_index()))
    }

    /// Opens what this end sealed for the peer not long ago, for what comes back inside errors.
    #[must_use]
    pub fn reopen<'a>(&self, aad: &[u8], body: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let index = index(body)?;
        let session = self.all().find(|session| session.peer_index() == index)?;
        session.reopen(aad, body).ok()
    }

    /// Whether there is none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.current.iter().chain(&self.next).chain(self.older.iter().flatten())
    }

    /// Takes a session that this end began; its other end has proved itself.
    pub(super) fn began(&mut self, session: Arc<Session>) {
        let next = self.next.take();
        self.retire(next);
        self.promote(session);
    }

    /// Takes a session that the peer began.
    pub(super) fn answered(&mut self, session: Arc<Session>) {
        self.next = Some(session);
    }

    /// Sends with the peer's session from now on, if the peer has used it.
    pub(super) fn confirm(&mut self) -> bool {
        match self.next.take() {
            Some(next) if next.is_confirmed() => {
                self.promote(next);
                true
            }
            next => {
                self.next = next;
                false
            }
        }
    }

    fn promote(&mut self, session: Arc<Session>) {
        let before = self.current.replace(session);
        self.retire(before);
    }

    fn retire(&mut self, session: Option<Arc<Session>>) {
        if session.is_some() {
            // In place of one that is over, if there is any, or else of the oldest.
            let free = self.older.iter().position(Option::is_none).unwrap_or(OLDER_COUNT - 1);
            if let Some(moved) = self.older.get_mut(..=free) {
                moved.rotate_right(1);
            }
            let [newest, ..] = &mut self.older;
            *newest = session;
        }
    }

    /// Forgets sessions that are over. True when there were any.
    pub(super) fn expire(&mut self, now: Time) -> bool {
        let is_stale = |session: &Arc<Session>| {
            let waits =
                !session.is_confirmed() && now.since(session.established()) >= CONFIRM_AFTER;
            waits || session.is_over(now)
        };
        let all = [&mut self.current, &mut self.next].into_iter().chain(&mut self.older);
        let mut is_any = false;
        for session in all {
            if session.take_if(|session| is_stale(session)).is_some() {
                is_any = true;
            }
        }
        is_any
    }
}

/// All about a peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) ring: Ring,
    pub(super) activity: Arc<Activity>,
    pub(super) attempt: Option<Attempt>,
    /// Attempts in a row that nobody answered, and until when there is none.
    pub(super) failures: u32,
    pub(super) paused_until: Time,
    /// Of the last initiation that was taken; zero before.
    pub(super) newest: Stamp,
    pub(super) answered: Option<Answered>,
    /// When a challenge or a repeated response was sent.
    pub(super) replied: Option<Time>,
    /// When it last came up.
    pub(super) touched: Time,
}

/// A handshake that this end began.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) initiator: Initiator,
    pub(super) index: u32,
    /// Sent again as it is, so that an answer to any of them will do.
    pub(super) message: Vec<u8>,
    pub(super) begun: Time,
    pub(super) resent_count: usize,
    pub(super) has_cookie: bool,
}

/// A handshake that the peer began, and what was said to it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) stamp: Stamp,
    pub(super) index: u32,
    pub(super) response: Vec<u8>,
    pub(super) at: Time,
}

/// What an attempt needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Resend,
    GiveUp,
}

impl Attempt {
    pub(super) fn due(&mut self, now: Time) -> Due {
        let age = now.since(self.begun);
        if age >= ANSWER_WAIT_MAX {
            return Due::GiveUp;
        }
        match RESEND_AFTER.get(self.resent_count) {
            Some(after) if age >= *after => {
                self.resent_count += 1;
                Due::Resend
            }
            _ => Due::Nothing,
        }
    }
}

impl Peer {
    /// Whether a new session should be begun without anybody wanting one.
    pub(super) fn needs_session(&self, now: Time) -> bool {
        let Some(session) = self.ring.current() else { return false };
        let activity = &self.activity;
        let is_in_use = activity.unused_for(now).is_some_and(|unused| unused < IN_USE);
        let (age, count) = (now.since(session.established()), session.sealed_count());
        let limit = if session.is_initiator() { REKEY_AFTER } else { REKEY_AFTER_AS_RESPONDER };
        let is_silent = activity.unanswered_for(now).is_some_and(|time| time >= SILENCE_MAX);
        is_in_use && (age >= limit || is_silent || count >= REKEY_AFTER_PACKETS)
    }

    /// Notes that the peer is there.
    pub(super) fn is_there(&mut self) {
        self.activity.heard();
        self.failures = 0;
        self.paused_until = Time::default();
    }

    /// Notes that the peer did not answer.
    pub(super) fn is_silent(&mut self, is_proved: bool, now: Time) {
        let longest = if is_proved { PAUSE_MAX_PROVED } else { PAUSE_MAX };
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.paused_until = now + pause.min(longest);
    }
}

/// No cookie: nobody was asked for one.
pub(super) const NO_COOKIE: [u8; COOKIE_SIZE] = [0; COOKIE_SIZE];
