//! The commands that have a method of their own, and any others.

use sha1::{Digest, Sha1};
use zdb_resp::reply::Reply;

use crate::connection::Client;
use crate::value::Value;
use crate::{ClientError, Password};

/// Commands.
impl Client {
    /// `PING`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ping(&mut self) -> Result<(), ClientError> {
        self.one("PING", &[b"PING"], |_| Some(()))
    }

    /// `AUTH password`, which sends the password in clear.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the password is wrong or the server has none.
    pub fn auth(&mut self, password: &Password) -> Result<(), ClientError> {
        self.one("AUTH", &[b"AUTH", password.reveal().as_bytes()], |_| Some(()))
            .map_err(|error| without(error, password))
    }

    /// `AUTH SECURE`: proves knowledge of the password by hashing it with the server's challenge.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the password is wrong or the server has none.
    pub fn auth_secure(&mut self, password: &Password) -> Result<(), ClientError> {
        let answer = self.challenge_answer(password)?;
        self.one("AUTH", &[b"AUTH", b"SECURE", answer.as_bytes()], |_| Some(()))
    }

    /// `SELECT namespace [password]`, which sends the password in clear.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such namespace or the password is wrong.
    pub fn select(
        &mut self,
        namespace: &str,
        password: Option<&Password>,
    ) -> Result<(), ClientError> {
        let Some(password) = password else {
            return self.one("SELECT", &[b"SELECT", namespace.as_bytes()], |_| Some(()));
        };
        let arguments = [b"SELECT", namespace.as_bytes(), password.reveal().as_bytes()];
        self.one("SELECT", &arguments, |_| Some(())).map_err(|error| without(error, password))
    }

    /// `SELECT namespace SECURE`: like [`Client::auth_secure`], for a namespace's password.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such namespace or the password is wrong.
    pub fn select_secure(
        &mut self,
        namespace: &str,
        password: &Password,
    ) -> Result<(), ClientError> {
        let answer = self.challenge_answer(password)?;
        let arguments = [b"SELECT", namespace.as_bytes(), b"SECURE", answer.as_bytes()];
        self.one("SELECT", &arguments, |_| Some(()))
    }

    /// `GET key`: the value, if there is one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        self.one("GET", &[b"GET", key], optional_bytes)
    }

    /// `SET key value`.
    ///
    /// # Errors
    /// [`ClientError::Refused`], for example when the namespace is full or read-only.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ClientError> {
        self.one("SET", &[b"SET", key, value], |_| Some(()))
    }

    /// `EXISTS key`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exists(&mut self, key: &[u8]) -> Result<bool, ClientError> {
        self.one("EXISTS", &[b"EXISTS", key], truth)
    }

    /// Gets many values with few round trips; the answers are in the order of `keys`.
    ///
    /// # Errors
    /// The first error; the answers to all keys are dropped then.
    pub fn get_batch<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
    ) -> Result<Vec<Option<Vec<u8>>>, ClientError> {
        let requests = keys.iter().map(|key| [b"GET", key.as_ref()]);
        self.batch("GET", requests, optional_bytes)
    }

    /// Asks for many keys whether they exist, with few round trips.
    ///
    /// # Errors
    /// The first error.
    pub fn exists_batch<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Result<Vec<bool>, ClientError> {
        self.batch("EXISTS", keys.iter().map(|key| [b"EXISTS", key.as_ref()]), truth)
    }

    /// Sets many values with few round trips.
    ///
    /// # Errors
    /// The first error; values before and after it may have been set.
    pub fn set_batch<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        pairs: &[(K, V)],
    ) -> Result<(), ClientError> {
        let requests = pairs.iter().map(|(key, value)| [b"SET", key.as_ref(), value.as_ref()]);
        self.batch("SET", requests, |_| Some(())).map(|_| ())
    }

    /// Any command. An error inside an array is part of the value.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the whole reply is an error.
    pub fn call(&mut self, arguments: &[&[u8]]) -> Result<Value, ClientError> {
        self.one("command", arguments, |reply| Some(Value::from(reply)))
    }

    /// Any commands, with few round trips; the answers are in their order.
    ///
    /// # Errors
    /// The first error; commands before and after it may have been done.
    pub fn call_batch(&mut self, requests: &[Vec<Vec<u8>>]) -> Result<Vec<Value>, ClientError> {
        self.batch("command", requests.iter(), |reply| Some(Value::from(reply)))
    }

    /// `sha1(challenge ":" password)` in hex (`reference: zdb 2.3`).
    fn challenge_answer(&mut self, password: &Password) -> Result<String, ClientError> {
        let challenge =
            self.one("AUTH SECURE", &[b"AUTH", b"SECURE", b"CHALLENGE"], |reply| match reply {
                Reply::Simple(challenge) | Reply::Bulk(challenge) => Some(challenge.to_vec()),
                _ => None,
            })?;
        let hash =
            Sha1::new().chain_update(&challenge).chain_update(b":").chain_update(password.reveal());
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

pub(crate) fn optional_bytes(reply: Reply<'_>) -> Option<Option<Vec<u8>>> {
    match reply {
        Reply::Bulk(bytes) => Some(Some(bytes.to_vec())),
        Reply::Nil => Some(None),
        _ => None,
    }
}

fn truth(reply: Reply<'_>) -> Option<bool> {
    match reply {
        Reply::Integer(number) => Some(number != 0),
        _ => None,
    }
}

/// The error, in which a server that repeats what it was sent does not show the password.
fn without(error: ClientError, password: &Password) -> ClientError {
    match error {
        ClientError::Refused { endpoint, command, text } if !password.reveal().is_empty() => {
            let text = text.replace(password.reveal(), "..");
            ClientError::Refused { endpoint, command, text }
        }
        other => other,
    }
}
