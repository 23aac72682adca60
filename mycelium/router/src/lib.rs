//! Which neighbour leads where, without a socket or a clock.
