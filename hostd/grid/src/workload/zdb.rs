//! `zdb`: a namespace of keys and values on a hard disk.
//!
//! It may grow and change its password and whether it is public; its mode stays.
//!
//! Challenge: `size mode password public`.

use serde::Serialize;

use super::{RuleError, Siblings};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::json;
use crate::secret::SecretText;

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Zdb {
    /// Bytes of data.
    pub size: u64,
    /// `user` or `seq`; [`Zdb::mode`] reads it.
    #[serde(rename = "mode")]
    pub mode_name: String,
    /// What clients authenticate with; none if empty.
    pub password: SecretText,
    /// Whether clients may read without the password.
    pub public: bool,
}
json::object!(Zdb as "zos.ZDB" {
    "size" => size: "gridtypes.Unit",
    "mode" => mode_name: "zos.ZDBMode",
    "password" => password,
    "public" => public,
});

/// Who chooses a namespace's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZdbMode {
    /// Its users.
    User,
    /// The server, counting.
    Seq,
}

impl ZdbMode {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Seq => "seq",
        }
    }
}

impl Zdb {
    /// The mode, which every valid namespace has.
    pub fn mode(&self) -> Option<ZdbMode> {
        [ZdbMode::User, ZdbMode::Seq].into_iter().find(|mode| mode.name() == self.mode_name)
    }

    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if self.size == 0 {
            return Err(RuleError::Size);
        }
        self.mode().map(drop).ok_or(RuleError::Mode)
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(self.size);
        out.add(&self.mode_name);
        out.add(self.password.expose());
        out.add(self.public);
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity { hru: self.size, ..Capacity::default() }
    }
}

/// What the node answers. Its members alone begin with capitals.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ZdbResult {
    /// The namespace's name.
    pub namespace: String,
    /// Where the server listens: addresses of IPv6, of the planetary network and of mycelium.
    #[serde(rename = "IPs")]
    pub ips: Vec<String>,
    /// The server's port.
    pub port: u16,
}
json::object!(ZdbResult as "zos.ZDBResult" {
    "Namespace" => namespace,
    "IPs" => ips,
    "Port" => port,
});
super::result!(ZdbResult);
