//! What the subcommands of `mycelium` share; each family has a file of its own beside this one.

pub(crate) mod doctor;
pub(crate) mod exit;
pub(crate) mod http;
pub(crate) mod instances;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod node;
pub(crate) mod ping;
pub(crate) mod status;
