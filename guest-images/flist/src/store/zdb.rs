//! `zdb://`: blocks in a ZDB namespace, under their raw names.
//!
//! `GET`, `EXISTS` and `SET` of `zdb/client`, over a pool of connections (`reference: flist 1.1`). A
//! namespace called `default` is where a new connection is already; it is selected only to give its
//! password. ZDB decides itself when writes become durable (`reference: zdb 2.1`), so `sync` has
//! nothing to do.

use std::error::Error;

use zdb_client::{
    AddressCheck, ClientError, Endpoint, Namespace, Password, Pool, PoolOptions, Timeouts,
};

use super::route::StoreOptions;
use super::url::{ZdbEndpoint, ZdbTarget};
use super::{Store, StoreError, hex};
use crate::block::STORED_SIZE_MAX;

/// A namespace of a ZDB.
pub struct ZdbStore {
    name: String,
    pool: Pool,
}

const DEFAULT_NAMESPACE: &str = "default";

impl ZdbStore {
    /// A store that connects with its first request. `name` is its URL without secrets.
    #[must_use]
    pub fn new(name: String, target: &ZdbTarget, options: &StoreOptions) -> Self {
        let endpoint = match &target.endpoint {
            ZdbEndpoint::Tcp(host, port) => Endpoint::Tcp(host.clone(), *port),
            ZdbEndpoint::Unix(path) => Endpoint::Unix(path.clone()),
        };
        let policy = options.policy.clone();
        let check = AddressCheck::new(move |address| {
            policy.check_address(address).map_err(|forbidden| forbidden.to_string())
        });
        let pool = Pool::new(PoolOptions {
            address_check: options.policy.is_restricted().then_some(check),
            namespace: namespace(target),
            timeouts: Timeouts {
                connect: options.connect_timeout,
                request: options.request_timeout,
            },
            connection_count_max: options.connection_count_max,
            value_size_max: STORED_SIZE_MAX + 1,
            ..PoolOptions::new(endpoint)
        });
        Self { name, pool }
    }

    fn error(&self, error: &ClientError) -> StoreError {
        let (store, reason) = (self.name.clone(), reason(error));
        match error {
            ClientError::Refused { .. } | ClientError::Forbidden { .. } => {
                StoreError::Refused { store, reason }
            }
            ClientError::Unexpected { .. } => StoreError::Failed { store, reason },
            _ => StoreError::Unreachable { store, reason },
        }
    }
}

impl Store for ZdbStore {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>, StoreError> {
        match self.pool.with(|client| client.get(name)) {
            Ok(Some(stored)) if stored.is_empty() => Err(StoreError::Failed {
                store: self.name.clone(),
                reason: "has an empty value for it".to_owned(),
            }),
            Ok(Some(stored)) => Ok(stored),
            Ok(None) => Err(StoreError::Missing { store: self.name.clone(), block: hex(name) }),
            Err(error) => Err(self.error(&error)),
        }
    }

    fn put(&self, name: &[u8], stored: &[u8]) -> Result<(), StoreError> {
        self.pool
            .with(|client| if client.exists(name)? { Ok(()) } else { client.set(name, stored) })
            .map_err(|error| self.error(&error))
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn namespace(target: &ZdbTarget) -> Option<Namespace> {
    let password = target.password.as_ref().map(|password| Password::new(password.reveal()));
    let name = target.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    if name == DEFAULT_NAMESPACE && password.is_none() {
        return None;
    }
    Some(Namespace { name: name.to_owned(), password })
}

/// The error with its sources, without the server's address: the store's name says it.
fn reason(error: &ClientError) -> String {
    if let ClientError::Forbidden { reason, .. } = error {
        return reason.clone();
    }
    let text = error.to_string();
    let mut reason = text.split_once(": ").map_or(text.as_str(), |(_, rest)| rest).to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::FakeZdb;
    use crate::store::url::{StoreUrl, Target};

    fn open(url: &str) -> ZdbStore {
        let url = StoreUrl::parse(url).unwrap();
        let Target::Zdb(target) = url.target() else { panic!("{url}") };
        ZdbStore::new(url.to_string(), target, &StoreOptions::default())
    }

    #[test]
    fn blocks_are_kept_under_their_raw_names_and_only_once() {
        let server = FakeZdb::start();
        let store = open(&format!("zdb://user:secret@127.0.0.1:{}/ns", server.port()));
        let name = [0xfe; 32];
        assert!(matches!(store.get(&name), Err(StoreError::Missing { .. })));
        store.put(&name, b"stored").unwrap();
        store.put(&name, b"another").unwrap();
        store.sync().unwrap();
        assert_eq!(store.get(&name).unwrap(), b"stored");
        assert_eq!(server.value(&name).unwrap(), b"stored");
        assert_eq!(server.commands("SET"), 1);
        assert_eq!(server.commands("SELECT"), 1);
    }

    #[test]
    fn the_default_namespace_is_not_selected() {
        let server = FakeZdb::start();
        for path in ["", "/", "/default"] {
            let store = open(&format!("zdb://127.0.0.1:{}{path}", server.port()));
            store.put(&[1; 32], b"stored").unwrap();
        }
        assert_eq!(server.commands("SELECT"), 0);
    }

    #[test]
    fn an_empty_value_is_an_error() {
        let server = FakeZdb::start();
        server.insert(&[2; 16], b"");
        let store = open(&format!("zdb://127.0.0.1:{}", server.port()));
        let error = store.get(&[2; 16]).unwrap_err();
        assert!(error.to_string().contains("empty value"), "{error}");
    }

    #[test]
    fn a_wrong_password_is_refused_and_not_shown() {
        let server = FakeZdb::start();
        let store = open(&format!("zdb://user:hunter2@127.0.0.1:{}/ns", server.port()));
        let error = store.get(&[1; 32]).unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("Access denied"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn a_server_that_is_not_there_is_unreachable() {
        let error = open("zdb://127.0.0.1:1/ns").get(&[1; 32]).unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
        assert!(error.to_string().starts_with("zdb://127.0.0.1:1/ns: can't connect: "), "{error}");
        let error = open("zdb:///nonexistent/zdb.sock").get(&[1; 32]).unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    }
}
