//! Store URLs, parsed once; secrets stay inside.

use std::fmt;

/// A store's URL. `Display` and `Debug` show it without passwords, keys and tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    text: String,
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.text.split("://").next().unwrap_or_default();
        write!(f, "{scheme}://..")
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({self})")
    }
}
