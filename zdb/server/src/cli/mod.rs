//! What the subcommands of `zdb` share; each has a file of its own beside this one.

pub(crate) mod backup;
pub(crate) mod client;
pub(crate) mod exit;
pub(crate) mod folders;
pub(crate) mod follow;
pub(crate) mod import;
pub(crate) mod key;
pub(crate) mod serve;
pub(crate) mod server_address;
pub(crate) mod snapshot;
