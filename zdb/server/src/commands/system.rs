//! About the server itself.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use zdb_resp::write;

use super::Call;
use crate::refusal::{Outcome, Refusal};

/// Versions of the existing server's formats, which clients look at (`reference: zdb 2.3`).
const DATA_VERSION: u32 = 3;
const INDEX_VERSION: u32 = 4;
const SEQUENTIAL_KEY_SIZE: u32 = 8;
const MIB: f64 = 1024.0 * 1024.0;
/// What `HELLO` tells.
const HELLO_ROWS: usize = 7;

/// `PING`.
pub(super) fn ping(call: &mut Call<'_, '_>) -> Outcome {
    write::simple(call.output.buffer(), b"PONG");
    Ok(())
}

/// `HELLO [2|3 [AUTH default password] [SETNAME name]]`: which protocol replies are written in, for
/// client libraries that ask before anything else. The existing server doesn't know it.
///
/// RESP3 differs in what we say in nil alone, and in this reply, which is a map.
pub(super) fn hello(call: &mut Call<'_, '_>) -> Outcome {
    let is_resp3 = match call.request.argument(1) {
        None => call.session.is_resp3,
        Some(b"2") => false,
        Some(b"3") => true,
        Some(_) => return Err("NOPROTO unsupported protocol version".into()),
    };
    let mut index = 2;
    while index < call.count() {
        let word = call.argument(index);
        if word.eq_ignore_ascii_case(b"AUTH") && index + 2 < call.count() {
            super::access::check_admin(call, call.argument(index + 2))?;
            call.session.is_admin = true;
            index += 3;
        } else if word.eq_ignore_ascii_case(b"SETNAME") && index + 1 < call.count() {
            // Names of clients are shown nowhere.
            index += 2;
        } else {
            return Err("Unexpected arguments".into());
        }
    }
    call.session.is_resp3 = is_resp3;
    let instance = call.core.instance_id;
    let out = call.output.buffer();
    if is_resp3 {
        write::map(out, HELLO_ROWS);
    } else {
        write::array(out, 2 * HELLO_ROWS);
    }
    for (name, text) in
        [("server", "zdb"), ("version", env!("CARGO_PKG_VERSION")), ("mode", "standalone")]
    {
        write::bulk(out, name.as_bytes());
        write::bulk(out, text.as_bytes());
    }
    for (name, number) in [("proto", if is_resp3 { 3 } else { 2 }), ("id", instance.into())] {
        write::bulk(out, name.as_bytes());
        write::integer(out, number);
    }
    write::bulk(out, b"role");
    write::bulk(out, b"master");
    write::bulk(out, b"modules");
    write::array(out, 0);
    Ok(())
}

/// `*`, which is a word of `WAIT`.
pub(super) fn star(_call: &mut Call<'_, '_>) -> Outcome {
    Err("This is not a valid command".into())
}

/// `TIME`: seconds and microseconds.
pub(super) fn time(call: &mut Call<'_, '_>) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let out = call.output.buffer();
    write::array(out, 2);
    write::bulk(out, now.as_secs().to_string().as_bytes());
    write::bulk(out, now.subsec_micros().to_string().as_bytes());
    Ok(())
}

/// `STOP`, for tests.
pub(super) fn stop(call: &mut Call<'_, '_>) -> Outcome {
    if !call.core.policy.has_test_commands {
        return Err(Refusal::unauthorized("Unauthorized"));
    }
    call.core.is_stopping = true;
    write::simple(call.output.buffer(), b"Stopping");
    Ok(())
}

/// `MIRROR`, `MASTER`: not spoken. `REPL` does what they were for, and loses nothing.
pub(super) fn mirror(_call: &mut Call<'_, '_>) -> Outcome {
    Err("Mirroring is not supported, follow a namespace with REPL".into())
}

/// `HOOKS`: the hooks of the last minutes.
pub(super) fn hooks(call: &mut Call<'_, '_>) -> Outcome {
    call.core.finish_hooks();
    let records = call.core.hooks.records();
    let out = call.output.buffer();
    write::array(out, records.len());
    for record in records {
        write::array(out, 6);
        write::bulk(out, record.event.name.as_bytes());
        write::request(out, &record.event.arguments);
        write::integer(out, record.pid.into());
        write::integer(out, record.created.into());
        write::integer(out, record.finished.into());
        write::integer(out, record.status.into());
    }
    Ok(())
}

/// `INFO`.
pub(super) fn info(call: &mut Call<'_, '_>) -> Outcome {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = describe(call, &mut text);
    write::bulk(call.output.buffer(), text.as_bytes());
    Ok(())
}

fn describe(call: &Call<'_, '_>, text: &mut String) -> std::fmt::Result {
    let core = &*call.core;
    let metrics = &core.metrics;
    let version = env!("CARGO_PKG_VERSION");
    writeln!(text, "# server\nserver_name: 0-db (zdb)\nserver_revision: {version}")?;
    writeln!(text, "engine_revision: {version}\ninstance_id: {}", core.instance_id)?;
    writeln!(text, "boot_time: {}", core.clock.unix_started)?;
    writeln!(text, "uptime: {}", core.clock.now.as_secs())?;
    writeln!(text, "\n# clients\nclients_lifetime: {}", metrics.client_count)?;
    writeln!(text, "\n# internals\nsequential_key_size: {SEQUENTIAL_KEY_SIZE}")?;
    writeln!(text, "data_version: {DATA_VERSION}\nindex_version: {INDEX_VERSION}")?;
    writeln!(text, "\n# stats\ncommands_executed: {}", metrics.executed_count())?;
    writeln!(text, "commands_failed: {}", metrics.failed_count())?;
    writeln!(text, "commands_unauthorized: {}", metrics.unauthorized_count)?;
    let mut totals = Totals::default();
    for entry in core.namespaces.entries() {
        // Those that another thread has are back in a moment.
        totals.unavailable += u64::from(entry.namespace.is_err() && !entry.is_away());
        if let Some(stats) = entry.stats() {
            totals.add(&stats);
        }
    }
    // The engine doesn't tell errors of reading from those of writing; a writer's own are known.
    writeln!(text, "index_disk_read_failed: {}", totals.index_errors)?;
    writeln!(text, "index_disk_write_failed: 0\ndata_disk_read_failed: {}", totals.data_errors)?;
    writeln!(text, "data_disk_write_failed: {}", metrics.commit_failed_count)?;
    writeln!(text, "data_size_bytes: {}\ndata_size_mb: {:.2}", totals.data, mib(totals.data))?;
    writeln!(text, "index_size_bytes: {}\nindex_size_mb: {:.2}", totals.index, mib(totals.index))?;
    writeln!(text, "index_memory_bytes: {}", totals.memory)?;
    writeln!(text, "clients_connected: {}", metrics.connected_count)?;
    writeln!(text, "clients_refused: {}", metrics.refused_count)?;
    writeln!(text, "clients_buffer_bytes: {}", metrics.buffer_size)?;
    writeln!(text, "namespaces: {}", core.namespaces.ids().len())?;
    writeln!(text, "namespaces_unavailable: {}", totals.unavailable)?;
    writeln!(text, "segments_quarantined: {}", totals.quarantined)?;
    writeln!(
        text,
        "records_damaged: {}\nscrubs_finished: {}",
        totals.damaged, metrics.scrub_count
    )?;
    writeln!(text, "syncs: {}\nreclaimed_bytes: {}", metrics.syncs.count, totals.reclaimed)?;
    writeln!(text, "disk_full: {}", u8::from(core.engine.disk_full()))?;
    for (name, size) in [("rx", metrics.received_size), ("tx", metrics.sent_size)] {
        writeln!(text, "network_{name}_bytes: {size}\nnetwork_{name}_mb: {:.2}", mib(size))?;
    }
    Ok(())
}

/// Sums over all namespaces.
#[derive(Default)]
struct Totals {
    data: u64,
    index: u64,
    memory: u64,
    data_errors: u64,
    index_errors: u64,
    quarantined: usize,
    damaged: u64,
    reclaimed: u64,
    unavailable: u64,
}

impl Totals {
    fn add(&mut self, stats: &zdb_engine::Stats) {
        self.data += stats.data_file_size;
        self.index += stats.index_file_size;
        self.memory += stats.index_memory_size;
        self.data_errors += stats.data_error_count;
        self.index_errors += stats.index_error_count;
        self.quarantined += stats.quarantined_segments.len();
        self.damaged += stats.damaged_record_count;
        self.reclaimed += stats.reclaimed_size;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people, with two decimals")]
fn mib(size: u64) -> f64 {
    size as f64 / MIB
}

#[cfg(test)]
mod tests {
    use zdb_client::Value;

    use super::super::testing::{Server, error, simple};

    #[test]
    fn stopping_is_for_tests() {
        let mut server = Server::new();
        let mut client = server.client();
        assert_eq!(server.ask(&mut client, &[b"STOP"]), error("Unauthorized"));
        assert!(!server.core().is_stopping());
        server.core().policy.has_test_commands = true;
        assert_eq!(server.ask(&mut client, &[b"STOP"]), simple("Stopping"));
        assert!(server.core().is_stopping());
    }

    #[test]
    fn clients_of_resp3_are_greeted_and_get_its_nil() {
        let mut server = Server::with_admin("secret");
        let mut client = server.client();
        server.tell(&mut client, &[b"GET", b"k"]);
        assert_eq!(server.raw(&mut client), b"$-1\r\n");
        let four = server.ask(&mut client, &[b"HELLO", b"4"]);
        assert_eq!(four, error("NOPROTO unsupported protocol version"));
        let wrong = server.ask(&mut client, &[b"HELLO", b"3", b"AUTH", b"default", b"x"]);
        assert_eq!(wrong, error("Access denied"));
        server.tell(&mut client, &[b"GET", b"k"]);
        assert_eq!(server.raw(&mut client), b"$-1\r\n", "refused, and nothing changed");
        let words: [&[u8]; 7] = [b"HELLO", b"3", b"auth", b"default", b"secret", b"SETNAME", b"me"];
        server.tell(&mut client, &words);
        let greeting = server.raw(&mut client);
        assert!(greeting.starts_with(b"%7\r\n$6\r\nserver\r\n$3\r\nzdb\r\n"));
        assert!(greeting.windows(13).any(|part| part == b"proto\r\n:3\r\n$2"));
        server.tell(&mut client, &[b"GET", b"k"]);
        assert_eq!(server.raw(&mut client), b"_\r\n");
        assert_eq!(server.ask(&mut client, &[b"NSNEW", b"n"]), simple("OK"), "an administrator");
        let two = server.ask(&mut client, &[b"HELLO", b"2"]);
        assert!(matches!(two, Value::Array(rows) if rows.len() == 14));
        server.tell(&mut client, &[b"MGET", b"k", b"l"]);
        assert_eq!(server.raw(&mut client), b"*2\r\n$-1\r\n$-1\r\n");
    }

    #[test]
    fn info_has_the_sections_that_clients_parse() {
        let mut server = Server::new();
        let mut client = server.client();
        server.ask(&mut client, &[b"NOPE"]);
        let Value::Bulk(text) = server.ask(&mut client, &[b"INFO"]) else { panic!() };
        let text = String::from_utf8(text).unwrap();
        for line in ["# server", "# clients", "# internals", "# stats", "commands_failed: 1"] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
    }
}
