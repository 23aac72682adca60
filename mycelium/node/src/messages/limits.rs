//! What all messages together may take. Senders are hostile: memory grows with bytes that came, never
//! with bytes that were promised, and none of these can be exceeded by any number of them.

use std::time::Duration;

/// Largest message, in bytes.
pub const MESSAGE_SIZE_MAX: usize = 16 * 1024 * 1024;
/// How long a message is tried, from the moment that it was handed over.
pub const TRY_TIME: Duration = Duration::from_secs(300);
/// How long its status is remembered, from the same moment.
pub const RECORD_TIME: Duration = Duration::from_secs(600);

/// Most messages whose status is remembered; the oldest finished one makes room for a new one.
pub const OUTGOING_COUNT_MAX: usize = 8192;
/// Most bytes of messages that are not finished.
pub const OUTGOING_SIZE_MAX: usize = 64 * 1024 * 1024;

/// Most messages that arrive from one source at a time.
pub const PENDING_PER_SOURCE_MAX: usize = 64;
/// Most messages that arrive at a time.
pub const PENDING_COUNT_MAX: usize = 1024;
/// Most bytes of messages that arrive from one source, counted when they are promised.
pub const PENDING_SIZE_PER_SOURCE_MAX: usize = 32 * 1024 * 1024;
/// Most bytes of messages that arrive.
pub const PENDING_SIZE_MAX: usize = 64 * 1024 * 1024;
/// What a chunk costs beside its bytes, in bytes.
pub const PART_OVERHEAD: usize = 96;
/// A message that grew no more for this long makes room for others when there is none.
pub const PENDING_IDLE_TIME: Duration = Duration::from_secs(5);
/// Most messages whose arrival is remembered, so that what was lost on the way back is said again.
pub const COMPLETED_COUNT_MAX: usize = 4096;

/// Most bytes of messages that wait for a reader.
pub const INBOX_SIZE_MAX: usize = 64 * 1024 * 1024;
/// Most bytes of one source's messages that wait for a reader.
pub const INBOX_SIZE_PER_SOURCE_MAX: usize = 32 * 1024 * 1024;
/// What a message in the inbox costs beside its bytes, in bytes.
pub const MESSAGE_OVERHEAD: usize = 512;
/// Most messages that are being given to sockets, or to who waits for a reply.
pub const HANDED_OVER_COUNT_MAX: usize = 64;

/// Most topics with rules of their own, and most subnets in one of them.
pub const TOPIC_COUNT_MAX: usize = 1024;

/// Most acknowledgements that wait to be sent; what is lost beyond is asked for again.
pub const ACK_COUNT_MAX: usize = 2048;
