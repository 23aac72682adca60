//! What a restored guest is told: entropy of its own, and what time it is.
//!
//! All guests that are restored from one snapshot have the same random numbers ahead of them, and
//! the time of the snapshot. The host therefore connects to [`PORT`] of the guest, where its init
//! listens, and sends one [`Message`]; the guest stirs the entropy into its pool, sets its clock,
//! answers with one byte, and closes. `FORMAT.md` has the bytes.
//!
//! ```text
//!   Pending ──connect──► Connecting ──accepted──► Sending ──message sent──► Sent ──byte 0──► done
//!      ▲                     │ refused, reset          │ reset                │ reset, too late
//!      └── RETRY_INTERVAL ───┴─────────────────────────┴──────────────────────┘
//!                                             after ATTEMPTS_MAX: given up
//! ```
//!
//! It is tried again because the guest may be busy forgetting the connections it had, and takes
//! this one for one of them. Each attempt has its own entropy and time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::packet::field;

/// The port of the guest; below 1024, so that only its root can listen there.
pub const PORT: u32 = 991;
/// Bytes of a message.
pub const MESSAGE_SIZE: usize = 96;
/// Bytes of entropy in a message.
pub const ENTROPY_SIZE: usize = 64;
/// The guest's answer when it has done as it was told.
pub const DONE: u8 = 0;
const MAGIC: [u8; 8] = *b"ZOSRSEED";
const VERSION: u16 = 1;
/// How often it is tried.
const ATTEMPTS_MAX: u32 = 8;
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How long the guest may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// What a restored guest is told.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The time, since 1970.
    pub wall_clock: Duration,
    /// Random bytes that nobody else was told.
    pub entropy: [u8; ENTROPY_SIZE],
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// They begin with something else.
    #[error("not a reseed message")]
    Magic,
    /// They are of a version that is not known.
    #[error("reseed message of version {0}, known is {VERSION}")]
    Version(u16),
    /// They say that they are more or fewer.
    #[error("reseed message of {0} bytes, it has {MESSAGE_SIZE}")]
    Size(u16),
    /// A second has fewer nanoseconds.
    #[error("reseed message with {0} nanoseconds")]
    Nanoseconds(u32),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has new entropy and the right time.
    Done,
    /// The guest took the message, and could not do as it was told: the byte it answered.
    Failed(u8),
    /// Nobody in the guest listens, or answers.
    GivenUp,
}

impl Message {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> [u8; MESSAGE_SIZE] {
        let mut bytes = [0; MESSAGE_SIZE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&96_u16.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.wall_clock.as_secs().to_le_bytes());
        bytes[24..28].copy_from_slice(&self.wall_clock.subsec_nanos().to_le_bytes());
        bytes[32..].copy_from_slice(&self.entropy);
        bytes
    }

    /// The message that `bytes` hold.
    ///
    /// # Errors
    /// [`MessageError`] when they hold none. Reserved bytes may have any value.
    pub fn decode(bytes: &[u8; MESSAGE_SIZE]) -> Result<Self, MessageError> {
        if bytes[..8] != MAGIC {
            return Err(MessageError::Magic);
        }
        let version = u16::from_le_bytes(field(bytes, 8));
        if version != VERSION {
            return Err(MessageError::Version(version));
        }
        let size = u16::from_le_bytes(field(bytes, 10));
        if usize::from(size) != MESSAGE_SIZE {
            return Err(MessageError::Size(size));
        }
        let nanoseconds = u32::from_le_bytes(field(bytes, 24));
        if nanoseconds >= 1_000_000_000 {
            return Err(MessageError::Nanoseconds(nanoseconds));
        }
        let wall_clock = Duration::new(u64::from_le_bytes(field(bytes, 16)), nanoseconds);
        Ok(Self { wall_clock, entropy: field(bytes, 32) })
    }

    /// A message of this moment.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub(super) fn now() -> Result<Self, rustix::io::Errno> {
        let mut entropy = [0; ENTROPY_SIZE];
        let mut filled = 0;
        while filled < ENTROPY_SIZE {
            let flags = rustix::rand::GetRandomFlags::empty();
            filled += rustix::rand::getrandom(&mut entropy[filled..], flags)?;
        }
        // A host before 1970 has other troubles.
        let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { wall_clock, entropy })
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("wall_clock", &self.wall_clock).finish_non_exhaustive()
    }
}

/// The attempts to tell a guest.
#[derive(Debug)]
pub(super) struct Reseed {
    state: State,
    attempts: u32,
}

#[derive(Debug)]
enum State {
    Pending(Instant),
    Connecting,
    Sending { bytes: Box<[u8; MESSAGE_SIZE]>, sent: usize },
    Sent(Instant),
}

impl Reseed {
    /// To be begun at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self { state: State::Pending(now), attempts: 0 }
    }

    /// When to call [`connects`](Self::connects) or [`is_late`](Self::is_late).
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Pending(at) | State::Sent(at) => Some(at),
            State::Connecting | State::Sending { .. } => None,
        }
    }

    /// Whether to connect now; it counts as an attempt.
    pub(super) fn connects(&mut self, now: Instant) -> bool {
        let is_due = matches!(self.state, State::Pending(at) if at <= now);
        if is_due {
            self.attempts += 1;
            self.state = State::Connecting;
        }
        is_due
    }

    /// Whether the guest did not answer in time.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        matches!(self.state, State::Sent(until) if until <= now)
    }

    /// The guest has accepted: it gets this message.
    pub(super) fn established(&mut self, message: &Message) {
        self.state = State::Sending { bytes: Box::new(message.encode()), sent: 0 };
    }

    /// What is still to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        match &self.state {
            State::Sending { bytes, sent } => &bytes[*sent..],
            _ => &[],
        }
    }

    /// `size` bytes of it were sent.
    pub(super) fn sent(&mut self, size: usize, now: Instant) {
        if let State::Sending { sent, .. } = &mut self.state {
            *sent += size;
            if *sent == MESSAGE_SIZE {
                self.state = State::Sent(now + REPLY_TIMEOUT);
            }
        }
    }

    /// The guest's answer. None if it came before the message was sent, which is no answer.
    pub(super) const fn answered(&self, byte: u8) -> Option<Event> {
        match self.state {
            State::Sent(_) if byte == DONE => Some(Event::Done),
            State::Sent(_) => Some(Event::Failed(byte)),
            _ => None,
        }
    }

    /// The connection is lost, before an answer: tries again, or gives up.
    pub(super) fn lost(&mut self, now: Instant) -> Option<Event> {
        if self.attempts >= ATTEMPTS_MAX {
            return Some(Event::GivenUp);
        }
        self.state = State::Pending(now + RETRY_INTERVAL);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let mut entropy = [0; ENTROPY_SIZE];
        for (i, byte) in entropy.iter_mut().enumerate() {
            *byte = 0x80 + u8::try_from(i).unwrap();
        }
        Message { wall_clock: Duration::new(0x0102_0304_0506, 0x0708_090a), entropy }
    }

    /// The bytes that `FORMAT.md` shows, which guests decode.
    #[test]
    fn a_message_is_laid_out_as_the_format_says() {
        let mut expected = b"ZOSRSEED\x01\x00\x60\x00\0\0\0\0".to_vec();
        expected.extend([6, 5, 4, 3, 2, 1, 0, 0, 10, 9, 8, 7, 0, 0, 0, 0]);
        expected.extend(0x80..0xc0);
        assert_eq!(message().encode().as_slice(), expected);
        assert_eq!(Message::decode(&message().encode()), Ok(message()));
    }

    #[test]
    fn other_bytes_are_no_message() {
        let table: [(usize, u8, MessageError); 4] = [
            (0, b'z', MessageError::Magic),
            (8, 2, MessageError::Version(2)),
            (10, 95, MessageError::Size(95)),
            (27, 0x77, MessageError::Nanoseconds(0x7708_090a)),
        ];
        for (at, byte, error) in table {
            let mut bytes = message().encode();
            bytes[at] = byte;
            assert_eq!(Message::decode(&bytes), Err(error));
        }
    }

    #[test]
    fn two_messages_differ_and_do_not_show_their_entropy() {
        let (one, other) = (Message::now().unwrap(), Message::now().unwrap());
        assert_ne!(one.entropy, other.entropy);
        assert!(one.wall_clock > Duration::from_secs(1_700_000_000));
        assert!(!format!("{:?}", message()).contains("128"));
    }

    #[test]
    fn it_is_tried_so_often_and_then_given_up() {
        let (start, mut attempts) = (Instant::now(), 1);
        let mut reseed = Reseed::new(start);
        let mut now = start;
        assert!(reseed.connects(now));
        while reseed.lost(now).is_none() {
            assert!(!reseed.connects(now), "not at once");
            now = reseed.deadline().unwrap();
            assert!(reseed.connects(now));
            attempts += 1;
        }
        assert_eq!(attempts, ATTEMPTS_MAX);
        assert_eq!(reseed.lost(now), Some(Event::GivenUp));
    }

    #[test]
    fn an_answer_counts_after_the_message() {
        let now = Instant::now();
        let mut reseed = Reseed::new(now);
        assert!(reseed.connects(now));
        assert_eq!(reseed.answered(DONE), None);
        reseed.established(&message());
        assert_eq!(reseed.unsent().len(), MESSAGE_SIZE);
        reseed.sent(90, now);
        assert_eq!(reseed.answered(DONE), None);
        assert_eq!(reseed.unsent(), &message().encode()[90..]);
        reseed.sent(6, now);
        assert!(reseed.unsent().is_empty());
        assert!(!reseed.is_late(now) && reseed.is_late(now + REPLY_TIMEOUT));
        assert_eq!(reseed.answered(DONE), Some(Event::Done));
        assert_eq!(reseed.answered(7), Some(Event::Failed(7)));
    }
}
