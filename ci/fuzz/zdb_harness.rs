//! What a fuzzer does with the bytes of ZDB's clients: two of them, an administrator and a guest, on a
//! server without sockets.
//!
//! Shared by the fuzz target and by `zdb/server/tests/fuzz_corpus.rs`, which feeds the committed corpus
//! through it in every test run.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use zdb_engine::storage::Disk;
use zdb_engine::{Engine, Options};
use zdb_resp::UNREAD_SIZE_MAX;
use zdb_server::connection::Connection;
use zdb_server::core::{ClientId, Core, Policy};
use zdb_server::output::Piece;

/// Bytes that one client sends before the other has its turn.
const TURN_SIZE: usize = 200;

/// Whatever clients send, replies are whole, the server lives, and its data can be loaded again.
pub(crate) fn zdb(bytes: &[u8]) {
    // Memory is faster, where there is such a folder.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a temporary folder");
    let mut core = open(folder.path());
    let mut clients = [0, 1].map(|place| {
        let client = ClientId { place, generation: 0 };
        Connection::new(core.session(client, place == 0))
    });
    for (turn, part) in bytes.chunks(TURN_SIZE).enumerate() {
        let client = &mut clients[turn % 2];
        core.begin_batch();
        if client.may_receive() {
            client.receive(&mut core, part, Instant::now());
        }
        settle(&mut core, &mut clients);
        assert!(core.take_failures().is_empty(), "the disk failed");
        core.upkeep(false);
        for (client, message) in core.take_messages() {
            clients[client.place as usize].tell(&message);
        }
        for client in &mut clients {
            client.feed(&mut core);
            client.output_mut().release(|namespace| core.acknowledged(namespace));
            check_replies(client);
            assert!(client.memory_size() <= 2 * UNREAD_SIZE_MAX, "a client's memory");
        }
    }
    for client in &clients {
        core.forget(client.session());
    }
    core.close();
    drop(core);
    open(folder.path()).close();
}

/// Ends a batch, and does what other threads would, until nobody waits for anything.
fn settle(core: &mut Core, clients: &mut [Connection; 2]) {
    loop {
        core.commit();
        let syncs: Vec<_> = core.take_syncs().collect();
        let tasks: Vec<_> = core.take_tasks().collect();
        if syncs.is_empty() && tasks.is_empty() {
            return;
        }
        for sync in syncs {
            core.synced(sync.run());
        }
        for task in tasks {
            core.finish_task(task.run());
        }
        for (client, reply) in core.take_answers() {
            clients[client.place as usize].answer(&reply);
        }
        for client in core.take_woken() {
            clients[client.place as usize].wake();
        }
        for client in clients.iter_mut().filter(|client| client.may_resume()) {
            client.resume(core, Instant::now());
        }
    }
}

fn open(folder: &Path) -> Core {
    let options = Options {
        reserve_size: 0,
        segment_size: Options::SEGMENT_SIZE_MIN,
        defers: true,
        ..Options::new(folder.join("data"), folder.join("index"))
    };
    let engine = Engine::open(Arc::new(Disk), options).expect("folders of our own");
    let policy = Policy { has_test_commands: true, ..Policy::default() };
    Core::open(engine, policy).expect("what we wrote is readable")
}

/// Bytes of the whole reply at the start: as RESP2 has them, and what clients that say `HELLO 3` get.
fn reply_size(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let head = line + 2;
    let number = || std::str::from_utf8(&bytes[1..line]).ok()?.parse::<i64>().ok();
    let elements = |count: i64| {
        let mut size = head;
        for _ in 0..count {
            size += reply_size(bytes.get(size..)?)?;
        }
        Some(size)
    };
    match bytes.first()? {
        b'+' | b'-' => Some(head),
        b':' => number().map(|_| head),
        b'_' => (line == 1).then_some(head),
        b'*' => elements(number()?),
        b'%' => elements(2 * number()?),
        b'$' => match usize::try_from(number()?) {
            Ok(size) => {
                (bytes.get(head + size..head + size + 2)? == b"\r\n").then_some(head + size + 2)
            }
            Err(_) => (bytes[..line] == *b"$-1").then_some(head),
        },
        _ => None,
    }
}

/// What may be sent is whole replies and nothing else.
fn check_replies(client: &mut Connection) {
    let mut sent = Vec::new();
    while let Some(piece) = client.output_mut().next() {
        let count = match piece {
            Piece::Bytes { bytes, .. } => {
                sent.extend_from_slice(bytes);
                bytes.len() as u64
            }
            Piece::File { extent, offset, size } => {
                let size = usize::try_from(size).expect("a value fits memory");
                let mut part = vec![0; size];
                let count = extent.file.read_at(&mut part, offset).expect("a readable file");
                sent.extend_from_slice(&part[..count]);
                count as u64
            }
        };
        client.output_mut().advance(count);
    }
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        let size = reply_size(rest);
        let size = size.unwrap_or_else(|| panic!("no whole reply: {}", rest.escape_ascii()));
        rest = &rest[size..];
    }
    assert_eq!(client.output().unsent_size(), 0, "a durable reply is held back");
}
