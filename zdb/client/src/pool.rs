//! A bounded set of connections that threads share.
//!
//! Connections are made when needed, logged in to one namespace, and kept while idle. Most recently
//! used ones go out first, so that the others can grow old and be closed by the server.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use zdb_resp::BULK_SIZE_MAX;

use crate::{AddressCheck, Client, ClientError, Endpoint, Password, Timeouts};

/// Connections to one server and namespace.
pub struct Pool {
    options: PoolOptions,
    state: Mutex<State>,
    returned: Condvar,
}

/// How a [`Pool`] connects.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The server.
    pub endpoint: Endpoint,
    /// The namespace to select on each connection; none for the server's default.
    pub namespace: Option<Namespace>,
    /// How long to wait for the server, and for a free connection (as long as for a request).
    pub timeouts: Timeouts,
    /// Most connections at a time; at least 1.
    pub connection_count_max: usize,
    /// Largest value that is accepted, in bytes.
    pub value_size_max: usize,
    /// Which of a server's addresses may be connected to; all if there is no check.
    pub address_check: Option<AddressCheck>,
}

/// A namespace and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its password. Proven by challenge where the server offers one, else sent in clear.
    pub password: Option<Password>,
}

#[derive(Default)]
struct State {
    idle: Vec<Client>,
    /// Connections that exist or are being made, idle ones included.
    count: usize,
}

impl PoolOptions {
    /// The usual limits: 20 connections, values of up to 8 MiB.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            namespace: None,
            timeouts: Timeouts::default(),
            connection_count_max: 20,
            value_size_max: BULK_SIZE_MAX,
            address_check: None,
        }
    }
}

impl Pool {
    /// A pool without connections.
    #[must_use]
    pub fn new(options: PoolOptions) -> Self {
        Self { options, state: Mutex::default(), returned: Condvar::new() }
    }

    /// Runs `operation` on a connection. If the connection was idle before and turns out to have
    /// been closed, it runs once more on a new one: `operation` must bear that.
    ///
    /// # Errors
    /// What `operation` or connecting says; [`ClientError::Busy`] if no connection became free.
    pub fn with<T>(
        &self,
        mut operation: impl FnMut(&mut Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut lease = self.lease()?;
        if let Some(client) = &mut lease.client {
            match operation(client) {
                Err(error) if error.is_hang_up() => lease.client = None,
                result => return result,
            }
            // Whatever closed that one has closed the other idle ones too.
            self.drop_idle();
        }
        let client = lease.client.insert(self.connect()?);
        operation(client)
    }

    /// Connections that exist at this moment.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.lock().count
    }

    fn lease(&self) -> Result<Lease<'_>, ClientError> {
        let deadline = Instant::now() + self.options.timeouts.request;
        let mut state = self.lock();
        loop {
            if let Some(client) = state.idle.pop() {
                return Ok(Lease { pool: self, client: Some(client) });
            }
            if state.count < self.options.connection_count_max.max(1) {
                state.count += 1;
                return Ok(Lease { pool: self, client: None });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Busy {
                    endpoint: self.options.endpoint.to_string(),
                    connection_count_max: self.options.connection_count_max,
                });
            }
            let waited = self.returned.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connect(&self) -> Result<Client, ClientError> {
        let options = &self.options;
        let mut client = Client::connect_with(
            &options.endpoint,
            &options.timeouts,
            options.value_size_max,
            options.address_check.as_ref(),
        )?;
        match &options.namespace {
            None => {}
            Some(Namespace { name, password: None }) => client.select(name, None)?,
            Some(Namespace { name, password: Some(password) }) => {
                match client.select_secure(name, password) {
                    // Redis, or a server from before challenges.
                    Err(ClientError::Refused { command: "AUTH SECURE", .. }) => {
                        client.select(name, Some(password))?;
                    }
                    result => result?,
                }
            }
        }
        Ok(client)
    }

    fn drop_idle(&self) {
        let mut state = self.lock();
        state.count -= state.idle.len();
        state.idle.clear();
        drop(state);
        self.returned.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A place in the pool; what it holds goes back when it is dropped, also by a panic.
struct Lease<'a> {
    pool: &'a Pool,
    client: Option<Client>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match self.client.take() {
            Some(client) if !client.is_broken() => state.idle.push(client),
            _ => state.count -= 1,
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use zdb_resp::write;

    use super::*;
    use crate::testing::{Action, FakeServer, Session, TIMEOUTS};

    /// Answers everything with `OK`, and closes after `request_count_max` requests.
    fn ok(request_count_max: usize) -> Session {
        let mut count = 0;
        Box::new(move |arguments| {
            count += 1;
            if count > request_count_max {
                return Action::Close;
            }
            let mut out = Vec::new();
            match arguments[0].as_slice() {
                b"AUTH" => write::error(&mut out, b"ERR unknown command"),
                b"SELECT" if arguments.last().unwrap() == b"wrong" => {
                    write::error(&mut out, b"Access denied");
                }
                _ => write::simple(&mut out, b"OK"),
            }
            Action::Send(out)
        })
    }

    fn options(server: &FakeServer) -> PoolOptions {
        PoolOptions { timeouts: TIMEOUTS, ..PoolOptions::new(server.endpoint.clone()) }
    }

    #[test]
    fn one_thread_uses_one_connection() {
        let server = FakeServer::tcp(|| ok(100));
        let pool = Pool::new(options(&server));
        for _ in 0..10 {
            pool.with(Client::ping).unwrap();
        }
        assert_eq!((server.connection_count(), pool.connection_count()), (1, 1));
    }

    #[test]
    fn a_connection_that_went_stale_is_replaced_without_notice() {
        let server = FakeServer::tcp(|| ok(1));
        let pool = Pool::new(options(&server));
        for _ in 0..5 {
            pool.with(Client::ping).unwrap();
        }
        assert_eq!((server.connection_count(), pool.connection_count()), (5, 1));
    }

    #[test]
    fn a_fresh_connection_that_closes_is_an_error() {
        let server = FakeServer::tcp(|| ok(0));
        let pool = Pool::new(options(&server));
        let error = pool.with(Client::ping).unwrap_err();
        assert!(error.is_hang_up(), "{error}");
        assert_eq!((server.connection_count(), pool.connection_count()), (1, 0));
    }

    #[test]
    fn many_threads_share_few_connections() {
        let server = FakeServer::tcp(|| ok(1000));
        let pool = Pool::new(PoolOptions { connection_count_max: 3, ..options(&server) });
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        pool.with(|client| {
                            most.fetch_max(
                                running.fetch_add(1, Ordering::SeqCst) + 1,
                                Ordering::SeqCst,
                            );
                            let result = client.ping();
                            running.fetch_sub(1, Ordering::SeqCst);
                            result
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3 && server.connection_count() <= 3);
    }

    #[test]
    fn waiting_for_a_connection_is_bounded() {
        let server = FakeServer::tcp(|| ok(100));
        let timeouts = Timeouts { request: Duration::from_millis(30), ..TIMEOUTS };
        let pool = Pool::new(PoolOptions { connection_count_max: 1, timeouts, ..options(&server) });
        let error = pool.with(|_| pool.with(Client::ping)).unwrap_err();
        assert!(matches!(error, ClientError::Busy { .. }), "{error}");
    }

    #[test]
    fn each_connection_selects_its_namespace_and_shows_no_password() {
        let selected = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&selected);
        let server = FakeServer::tcp(move || {
            let (counter, mut answer) = (Arc::clone(&counter), ok(100));
            Box::new(move |arguments| {
                if arguments[0] == b"SELECT" {
                    assert_eq!(arguments[1], b"ns");
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                answer(arguments)
            })
        });
        let namespace = |password: &str| {
            let password = Some(Password::new(password));
            Some(Namespace { name: "ns".to_owned(), password })
        };
        let pool = Pool::new(PoolOptions { namespace: namespace("right"), ..options(&server) });
        pool.with(Client::ping).unwrap();
        pool.with(Client::ping).unwrap();
        assert_eq!(selected.load(Ordering::SeqCst), 1);
        assert!(!format!("{pool:?}").contains("right"));
        let pool = Pool::new(PoolOptions { namespace: namespace("wrong"), ..options(&server) });
        let error = pool.with(Client::ping).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains("Access denied"), "{error}");
        assert_eq!(pool.connection_count(), 0);
    }
}
