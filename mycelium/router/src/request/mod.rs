//! Questions that are open: for routes, and for newer sequence numbers.
//!
//! Both kinds are bounded apart for this node and for each neighbour, so that nobody's flood of
//! questions leaves others without an answer.

mod query;
mod seqno;

pub(crate) use query::{Asker, Opened, Queries};
pub(crate) use seqno::{Seqnos, Wish};
