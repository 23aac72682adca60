//! Commands of a server's administrator.

use std::collections::BTreeMap;

use hostd_grid::workload::ZdbMode;
use zdb_client::{Client, ClientError, Value};

use super::{NO_PASSWORD, Wanted, ZdbError};

/// Files may take so many times a namespace's quota, and this much besides: values are what a quota
/// counts, and keys, headers and what is not compacted yet take room too.
const FILE_SIZE_FACTOR: u64 = 4;
const FILE_SIZE_EXTRA: u64 = 256 << 20;
/// The one that every server has, which is nobody's.
pub(super) const DEFAULT_NAME: &str = "default";

/// An administrator's connection.
#[derive(Debug)]
pub(super) struct Admin {
    pool: String,
    client: Client,
}

/// A namespace, as its server tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) mode: ZdbMode,
    /// 0 is none.
    pub(super) size_max: u64,
}

impl Info {
    fn parse(text: &str) -> Option<Self> {
        let fields: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once(": ")).collect();
        let mode = match *fields.get("mode")? {
            "userkey" => ZdbMode::User,
            "sequential" => ZdbMode::Seq,
            _ => return None,
        };
        Some(Self { mode, size_max: fields.get("data_limits_bytes")?.trim().parse().ok()? })
    }
}

impl Admin {
    /// A connection that has the administrator's rights.
    pub(super) fn new(pool: &str, client: Client) -> Self {
        Self { pool: pool.to_owned(), client }
    }

    /// All namespaces but the server's own.
    pub(super) fn names(&mut self) -> Result<Vec<String>, ZdbError> {
        let Value::Array(names) = self.call(&[b"NSLIST"])? else {
            return Err(self.unexpected("NSLIST"));
        };
        let name = |value| match value {
            Value::Bulk(name) => String::from_utf8(name).ok(),
            _ => None,
        };
        Ok(names.into_iter().filter_map(name).filter(|name| name != DEFAULT_NAME).collect())
    }

    /// A namespace; none if there is none.
    pub(super) fn info(&mut self, name: &str) -> Result<Option<Info>, ZdbError> {
        match self.client.call(&[b"NSINFO", name.as_bytes()]) {
            Ok(Value::Bulk(text)) => {
                let info = Info::parse(&String::from_utf8_lossy(&text));
                info.map(Some).ok_or_else(|| self.unexpected("NSINFO"))
            }
            Ok(_) => Err(self.unexpected("NSINFO")),
            Err(ClientError::Refused { text, .. }) if text.contains("not found") => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Bytes that are promised to all namespaces.
    pub(super) fn promised(&mut self) -> Result<u64, ZdbError> {
        let mut sum = 0_u64;
        for name in self.names()? {
            sum = sum.saturating_add(self.info(&name)?.map_or(0, |info| info.size_max));
        }
        Ok(sum)
    }

    /// Makes a namespace as it is wanted. It is nobody's before it is that: the server makes it with all of
    /// its properties, or not at all.
    pub(super) fn make(&mut self, name: &str, wanted: &Wanted<'_>) -> Result<(), ZdbError> {
        let (size, file_size) = (wanted.size.to_string(), file_size_max(wanted.size).to_string());
        let properties = [
            ["mode", wanted.mode.name()],
            ["public", public(wanted)],
            ["password", password(wanted)],
            ["maxfilesize", &file_size],
            ["maxsize", &size],
        ];
        let words = ["NSMAKE", name].into_iter().chain(properties.into_iter().flatten());
        let words: Vec<_> = words.map(str::as_bytes).collect();
        self.call(&words).map(drop)
    }

    /// Sets who may use it.
    pub(super) fn open_to(&mut self, name: &str, wanted: &Wanted<'_>) -> Result<(), ZdbError> {
        // Who may read without the password is said before there is another.
        self.set(name, b"public", public(wanted))?;
        self.set(name, b"password", password(wanted))
    }

    /// Sets its quota.
    pub(super) fn resize(&mut self, name: &str, size: u64) -> Result<(), ZdbError> {
        self.set(name, b"maxfilesize", &file_size_max(size).to_string())?;
        self.set(name, b"maxsize", &size.to_string())
    }

    pub(super) fn set_frozen(&mut self, name: &str, is_frozen: bool) -> Result<(), ZdbError> {
        self.set(name, b"freeze", if is_frozen { "1" } else { "0" })
    }

    /// Removes a namespace; one that is not there is no error.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), ZdbError> {
        match self.client.call(&[b"NSDEL", name.as_bytes()]) {
            Ok(_) => Ok(()),
            Err(ClientError::Refused { text, .. }) if text.contains("doesn't exist") => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Values are secrets sometimes: errors of the server's name properties and no values.
    fn set(&mut self, name: &str, property: &[u8], value: &str) -> Result<(), ZdbError> {
        self.call(&[b"NSSET", name.as_bytes(), property, value.as_bytes()]).map(drop)
    }

    fn call(&mut self, arguments: &[&[u8]]) -> Result<Value, ZdbError> {
        self.client.call(arguments).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ClientError) -> ZdbError {
        let (pool, reason) = (self.pool.clone(), error.to_string());
        if error.is_refusal() {
            ZdbError::Refused { pool, reason }
        } else {
            ZdbError::Unavailable { pool, reason }
        }
    }

    fn unexpected(&self, command: &str) -> ZdbError {
        let reason = format!("{command}: unexpected reply");
        ZdbError::Unavailable { pool: self.pool.clone(), reason }
    }
}

fn public(wanted: &Wanted<'_>) -> &'static str {
    if wanted.is_public { "1" } else { "0" }
}

fn password<'a>(wanted: &Wanted<'a>) -> &'a str {
    if wanted.password.is_empty() { NO_PASSWORD } else { wanted.password }
}

/// Bytes that the files of a namespace with that quota may take.
fn file_size_max(size: u64) -> u64 {
    let file_size = size.saturating_mul(FILE_SIZE_FACTOR).saturating_add(FILE_SIZE_EXTRA);
    file_size.min(i64::MAX.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_tells_is_read() {
        let text = "# namespace\nname: x\nentries: 0\npublic: yes\ndata_limits_bytes: 1024\n\
                    mode: sequential\n";
        let info = Info::parse(text).unwrap();
        assert_eq!(info, Info { mode: ZdbMode::Seq, size_max: 1024 });
        let unlimited = text.replace("1024", "0").replace("sequential", "userkey");
        let info = Info::parse(&unlimited).unwrap();
        assert_eq!(info, Info { mode: ZdbMode::User, size_max: 0 });
        assert_eq!(Info::parse("mode: userkey\n"), None);
        assert_eq!(Info::parse("mode: block\ndata_limits_bytes: 1\n"), None);
    }
}
