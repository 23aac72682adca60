//! Going through keys and their histories.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use zdb_engine::{Direction, Error, HISTORY_CURSOR_SIZE, Mode};
use zdb_resp::write;

use super::{Call, write_nil};
use crate::refusal::{Outcome, Refusal, read};

/// How long one `SCAN` may take (`reference: zdb 2.3`).
const SCAN_TIME_MAX: Duration = Duration::from_millis(2);
/// Keys between two looks at the clock.
const SCAN_COUNT: usize = 16;
/// Most keys of one reply.
const SCAN_COUNT_MAX: usize = 64 * 1024;

/// `SCAN [cursor]`.
pub(super) fn scan(call: &mut Call<'_, '_>) -> Outcome {
    scan_towards(call, Direction::Forward)
}

/// `RSCAN [cursor]`.
pub(super) fn rscan(call: &mut Call<'_, '_>) -> Outcome {
    scan_towards(call, Direction::Backward)
}

fn scan_towards(call: &mut Call<'_, '_>, direction: Direction) -> Outcome {
    let cursor = call.request.argument(1);
    let mut items = std::mem::take(&mut call.core.scratch);
    items.clear();
    let begin = Instant::now();
    let mut count = 0_usize;
    let scanned = call.core.active(call.session).and_then(|namespace| {
        let mut show = |item: zdb_engine::ScanItem<'_>| {
            write::array(&mut items, 3);
            write::bulk(&mut items, item.key);
            write::integer(&mut items, i64::try_from(item.size).unwrap_or(i64::MAX));
            write::integer(&mut items, item.timestamp.into());
            count += 1;
            let is_late = count.is_multiple_of(SCAN_COUNT) && begin.elapsed() > SCAN_TIME_MAX;
            if is_late || count >= SCAN_COUNT_MAX {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        namespace.scan(direction, cursor, &mut show).map_err(|error| read(&error))
    });
    let outcome = scanned.and_then(|scanned| {
        let cursor = scanned.cursor.filter(|_| scanned.count > 0).ok_or("No more data")?;
        let out = call.output.buffer();
        write::array(out, 2);
        write::bulk(out, &cursor);
        write::array(out, scanned.count);
        out.extend_from_slice(&items);
        Ok(())
    });
    call.core.scratch = items;
    outcome
}

/// `KEYCUR key`: from where a scan goes on after this key.
pub(super) fn keycur(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.argument(1);
    let cursor = call.core.active(call.session)?.cursor(key);
    let cursor = cursor.map_err(|error| read(&error))?.ok_or("Key not found")?;
    write::bulk(call.output.buffer(), &cursor);
    Ok(())
}

/// `HISTORY key [cursor]`: the value now or before, with where to go on.
pub(super) fn history(call: &mut Call<'_, '_>) -> Outcome {
    if !(2..=3).contains(&call.count()) {
        return Err("Invalid arguments".into());
    }
    let (key, cursor) = (call.argument(1), call.request.argument(2));
    if cursor.is_some_and(|cursor| cursor.len() != HISTORY_CURSOR_SIZE) {
        return Err("Invalid arguments".into());
    }
    let mut payload = std::mem::take(&mut call.core.scratch);
    payload.clear();
    let entry = call.core.active(call.session).and_then(|namespace| {
        namespace.history(key, cursor, &mut payload).map_err(|error| refuse_history(&error))
    });
    let missing = if cursor.is_some() { "No more history" } else { "Key not found" };
    let outcome = entry.and_then(|entry| entry.ok_or_else(|| missing.into())).map(|entry| {
        let out = call.output.buffer();
        write::array(out, 3);
        match entry.next {
            Some(next) => write::bulk(out, &next),
            None => write_nil(out, call.session),
        }
        write::bulk(out, entry.timestamp.to_string().as_bytes());
        write::bulk(out, payload.get(..entry.size).unwrap_or(&payload));
    });
    call.core.scratch = payload;
    outcome
}

fn refuse_history(error: &Error) -> Refusal {
    match error {
        Error::KeySize { .. } => "Key not found".into(),
        Error::BadCursor => "Invalid arguments".into(),
        Error::UnknownHistory { .. } => "Invalid arguments (index query)".into(),
        Error::ForeignHistory { .. } => "Invalid arguments (invalid key)".into(),
        other => read(other),
    }
}

/// `DBSIZE`: live keys. A frozen namespace tells it too.
pub(super) fn dbsize(call: &mut Call<'_, '_>) -> Outcome {
    let count = call.core.active(call.session)?.len();
    write::integer(call.output.buffer(), i64::try_from(count).unwrap_or(i64::MAX));
    Ok(())
}

/// `KSCAN prefix`, for tests (`reference: zdb 1`).
pub(super) fn kscan(call: &mut Call<'_, '_>) -> Outcome {
    if !call.core.policy.has_test_commands {
        return Err("Command disabled in release code, not yet available".into());
    }
    let prefix = call.argument(1);
    let namespace = call.core.active(call.session)?;
    if namespace.settings().mode == Mode::Sequential {
        return Err("Index running mode doesn't support this feature".into());
    }
    let mut keys = Vec::new();
    let mut show = |item: zdb_engine::ScanItem<'_>| {
        if item.key.starts_with(prefix) {
            keys.push(item.key.to_vec());
        }
        if keys.len() < SCAN_COUNT_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    namespace.scan(Direction::Forward, None, &mut show).map_err(|error| read(&error))?;
    if keys.is_empty() {
        return Err("No keys match".into());
    }
    let out = call.output.buffer();
    write::array(out, 2);
    write::bulk(out, b"0");
    write::request(out, &keys);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use zdb_client::Value;

    use super::super::testing::{Server, bulk, error};

    /// The keys of a scan's reply, and its cursor.
    fn keys(reply: Value) -> (Vec<u8>, Vec<Vec<u8>>) {
        let Value::Array(parts) = reply else { panic!("{reply:?}") };
        let [Value::Bulk(cursor), Value::Array(items)] = parts.as_slice() else { panic!() };
        let key = |item: &Value| match item {
            Value::Array(fields) => match fields.first() {
                Some(Value::Bulk(key)) => key.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        (cursor.clone(), items.iter().map(key).collect())
    }

    #[test]
    fn scans_reach_every_key_once() {
        let mut server = Server::new();
        let mut client = server.client();
        let all: BTreeSet<Vec<u8>> =
            (0..5000).map(|number: u32| number.to_string().into_bytes()).collect();
        for key in &all {
            server.ask(&mut client, &[b"SET", key, b"v"]);
        }
        for command in [&b"SCAN"[..], b"RSCAN"] {
            let mut seen = BTreeSet::new();
            let mut cursor: Option<Vec<u8>> = None;
            loop {
                let mut arguments = vec![command];
                arguments.extend(cursor.as_deref());
                let reply = server.ask(&mut client, &arguments);
                if reply == error("No more data") {
                    break;
                }
                let (next, keys) = keys(reply);
                assert!(!keys.is_empty() && next.len() == 17);
                for key in keys {
                    assert!(seen.insert(key), "a key was shown twice");
                }
                cursor = Some(next);
            }
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn history_goes_back_and_ends() {
        let mut server = Server::new();
        let mut client = server.client();
        server.ask(&mut client, &[b"SET", b"k", b"one", b"1"]);
        server.ask(&mut client, &[b"SET", b"k", b"two", b"2"]);
        let Value::Array(newest) = server.ask(&mut client, &[b"HISTORY", b"k"]) else { panic!() };
        assert_eq!(newest[1..], [bulk(b"2"), bulk(b"two")]);
        let Value::Bulk(cursor) = &newest[0] else { panic!("no cursor") };
        let oldest = server.ask(&mut client, &[b"HISTORY", b"k", cursor]);
        assert_eq!(oldest, Value::Array(vec![Value::Nil, bulk(b"1"), bulk(b"one")]));
        let end = server.ask(&mut client, &[b"HISTORY", b"k", &[0; 8]]);
        assert_eq!(end, error("No more history"));
    }

    #[test]
    fn keys_by_prefix_are_for_tests() {
        let mut server = Server::new();
        let mut client = server.client();
        let disabled = "Command disabled in release code, not yet available";
        assert_eq!(server.ask(&mut client, &[b"KSCAN", b"a"]), error(disabled));
        server.core().policy.has_test_commands = true;
        assert_eq!(server.ask(&mut client, &[b"KSCAN", b"a"]), error("No keys match"));
        server.ask(&mut client, &[b"SET", b"ab", b"v"]);
        server.ask(&mut client, &[b"SET", b"b", b"v"]);
        let expected = Value::Array(vec![bulk(b"0"), Value::Array(vec![bulk(b"ab")])]);
        assert_eq!(server.ask(&mut client, &[b"KSCAN", b"a"]), expected);
    }
}
