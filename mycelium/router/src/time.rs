//! Time as the router sees it: what has passed since a start of the caller's choice.

use std::ops::Add;
use std::time::Duration;

/// A moment: how long it is after the caller's start. The start itself is `Time::default()`.
///
/// The router never reads a clock. A moment earlier than one seen before is taken as that one; and
/// between two calls no more than 30 s pass, whatever the caller's clock says. A host that slept has
/// not forgotten what it told its neighbours, who were awake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// What has passed since `earlier`; nothing, if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}
