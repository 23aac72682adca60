//! Times and bounds of sessions.

use std::time::Duration;

/// Age at which who began a session begins the next, if this one is in use.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age at which the other end begins the next one, if nobody else did.
pub const REKEY_AFTER_AS_RESPONDER: Duration = Duration::from_secs(165);
/// Age at which a session is over.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// Packets after which the next session is begun.
pub const REKEY_AFTER_PACKETS: u64 = 1 << 60;
/// A session that carried something within this time is in use.
pub const IN_USE: Duration = Duration::from_secs(15);
/// How long a session waits for its first packet.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(30);

/// Data that came is acknowledged within this time, if by nothing else than a sign of life.
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(1);
/// A peer that is sent data and says nothing for this long has lost the session.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// When an initiation is sent again, counted from the first time.
pub const RESEND_AFTER: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(900), Duration::from_millis(2100)];
/// How long a response is waited for.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(4);
/// Pause after the first handshake that nobody answered; it doubles with each.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause, for a peer that had a session with this node before: it is down, or out of reach.
pub const PAUSE_MAX_PROVED: Duration = Duration::from_secs(8);
/// Longest pause for others.
pub const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Least time between two sessions that a peer begins.
pub const INITIATION_SPACING: Duration = Duration::from_millis(100);
/// Initiations that are answered in a second, and at once; each costs some 0.2 ms.
pub const INITIATION_RATE: u32 = 500;
/// Least time between two challenges, or two repeated responses, to a peer.
pub const REPLY_SPACING: Duration = Duration::from_millis(200);

/// Peers that the machine knows anything of.
pub const PEER_COUNT_MAX: usize = 4096;
/// How long it knows a peer without a session.
pub const PEER_KEPT: Duration = Duration::from_secs(600);
/// Peers whose proof is remembered.
pub const PROVED_COUNT_MAX: usize = 16384;
/// How often [`super::Machine::tick`] is due: while a response is waited for, while sessions are in use,
/// and while there are any.
pub const TICK_ASKING: Duration = Duration::from_millis(100);
/// See [`TICK_ASKING`].
pub const TICK_IN_USE: Duration = Duration::from_millis(250);
/// See [`TICK_ASKING`].
pub const TICK_IDLE: Duration = Duration::from_secs(1);
