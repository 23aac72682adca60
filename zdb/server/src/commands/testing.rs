//! A server in a test: real folders, clients without sockets.

use std::sync::Arc;
use std::time::Instant;

use zdb_client::Value;
use zdb_engine::storage::Disk;
use zdb_engine::{Engine, Options, Password};
use zdb_resp::reply::{self, Parsed};
use zdb_resp::{Limits, write};

use crate::connection::Connection;
use crate::core::{ClientId, Core, Policy};
use crate::output::Piece;

/// A server whose folders go when it goes.
pub(crate) struct Server {
    core: Option<Core>,
    policy: Policy,
    folder: tempfile::TempDir,
    next_client: u32,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with_policy(Policy::default())
    }

    pub(crate) fn with_admin(password: &str) -> Self {
        let admin = Some(Password::new(password.as_bytes()));
        Self::with_policy(Policy { admin, ..Policy::default() })
    }

    pub(crate) fn with_policy(policy: Policy) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let core = Some(open(&folder, &policy));
        Self { core, policy, folder, next_client: 0 }
    }

    /// Ends well and starts again. Clients are gone.
    pub(crate) fn restart(&mut self) {
        self.core.take().unwrap().close();
        self.core = Some(open(&self.folder, &self.policy));
    }

    pub(crate) fn core(&mut self) -> &mut Core {
        self.core.as_mut().unwrap()
    }

    pub(crate) fn client(&mut self) -> Connection {
        self.connect(false)
    }

    pub(crate) fn local_client(&mut self) -> Connection {
        self.connect(true)
    }

    fn connect(&mut self, is_local: bool) -> Connection {
        self.next_client += 1;
        let client = ClientId { place: self.next_client, generation: 0 };
        Connection::new(self.core().session(client, is_local))
    }

    /// Sends a request whose reply comes later.
    pub(crate) fn tell(&mut self, client: &mut Connection, arguments: &[&[u8]]) {
        self.send(client, arguments);
        self.run_tasks(client);
        let core = self.core();
        client.output_mut().release(|id| core.acknowledged(id));
    }

    /// Ends a batch, until nothing is left to be synced.
    pub(crate) fn settle(&mut self) {
        let core = self.core();
        loop {
            core.commit();
            let syncs: Vec<_> = core.take_syncs().collect();
            if syncs.is_empty() {
                return;
            }
            for sync in syncs {
                core.synced(sync.run());
            }
        }
    }

    /// Runs what a client asked for and what takes long, until nothing is left.
    fn run_tasks(&mut self, client: &mut Connection) {
        while self.run_pending() {
            self.deliver(client);
        }
    }

    /// Runs what takes long and has begun; whether there was anything.
    pub(crate) fn run_pending(&mut self) -> bool {
        let tasks: Vec<_> = self.core().take_tasks().collect();
        let is_any = !tasks.is_empty();
        for task in tasks {
            self.core().finish_task(task.run());
        }
        self.settle();
        is_any
    }

    /// Gives a client its answer, and another chance.
    pub(crate) fn deliver(&mut self, client: &mut Connection) {
        let core = self.core();
        for (asker, reply) in core.take_answers() {
            assert_eq!(asker, client.session().client, "somebody else's answer");
            client.answer(&reply);
        }
        core.take_woken();
        client.wake();
        if client.may_resume() {
            client.resume(core, Instant::now());
        }
    }

    /// Sends a request, and leaves what takes long undone.
    pub(crate) fn send(&mut self, client: &mut Connection, arguments: &[&[u8]]) {
        let mut bytes = Vec::new();
        write::request(&mut bytes, arguments);
        let core = self.core();
        core.begin_batch();
        client.receive(core, &bytes, Instant::now());
        self.settle();
        let core = self.core();
        client.output_mut().release(|id| core.acknowledged(id));
    }

    /// What a client was sent since it last looked.
    pub(crate) fn received(&mut self, client: &mut Connection) -> Vec<Value> {
        let core = self.core();
        client.output_mut().release(|id| core.acknowledged(id));
        replies(client)
    }

    /// The same, as bytes.
    pub(crate) fn raw(&mut self, client: &mut Connection) -> Vec<u8> {
        let core = self.core();
        client.output_mut().release(|id| core.acknowledged(id));
        bytes(client)
    }

    /// Sends a request and reads its reply.
    pub(crate) fn ask(&mut self, client: &mut Connection, arguments: &[&[u8]]) -> Value {
        self.tell(client, arguments);
        let mut replies = replies(client);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }

    /// What a follower is sent.
    pub(crate) fn feed(&mut self, client: &mut Connection) -> Vec<Value> {
        client.feed(self.core());
        replies(client)
    }
}

fn open(folder: &tempfile::TempDir, policy: &Policy) -> Core {
    let options = Options {
        reserve_size: 1024 * 1024,
        defers: true,
        ..Options::new(folder.path().join("data"), folder.path().join("index"))
    };
    let engine = Engine::open(Arc::new(Disk), options).unwrap();
    Core::open(engine, policy.clone()).unwrap()
}

/// All that a client was sent.
fn replies(client: &mut Connection) -> Vec<Value> {
    let bytes = bytes(client);
    let mut rest = bytes.as_slice();
    let mut replies = Vec::new();
    while !rest.is_empty() {
        let Parsed::Complete(reply, size) = reply::parse(rest, &Limits::default()).unwrap() else {
            panic!("half a reply")
        };
        replies.push(reply.into());
        rest = &rest[size..];
    }
    replies
}

fn bytes(client: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = client.output_mut().next() {
        let count = match piece {
            Piece::Bytes { bytes: piece, .. } => {
                bytes.extend_from_slice(piece);
                piece.len() as u64
            }
            Piece::File { extent, offset, size } => {
                let mut part = vec![0; usize::try_from(size).unwrap()];
                let count = extent.file.read_at(&mut part, offset).unwrap();
                bytes.extend_from_slice(&part[..count]);
                count as u64
            }
        };
        client.output_mut().advance(count);
    }
    bytes
}

pub(crate) fn simple(text: &str) -> Value {
    Value::Simple(text.as_bytes().to_vec())
}

pub(crate) fn error(text: &str) -> Value {
    Value::Error(text.as_bytes().to_vec())
}

pub(crate) fn bulk(bytes: &[u8]) -> Value {
    Value::Bulk(bytes.to_vec())
}
