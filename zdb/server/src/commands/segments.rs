//! The log behind the keys: dirty files, records as they lie, followers.

use zdb_engine::{Change, Error, LogRecord, SeqNo};
use zdb_resp::write;

use super::{Call, leading_number, write_nil};
use crate::core::{Answer, NamespaceId, Worked};
use crate::refusal::{DELETE_FAILED, Outcome, Refusal, SET_FAILED, common};

/// `INDEX DIRTY`: segments that were written. `INDEX DIRTY RESET` forgets them.
pub(super) fn index(call: &mut Call<'_, '_>) -> Outcome {
    check_filled(call, 2)?;
    if !call.argument(1).eq_ignore_ascii_case(b"DIRTY") {
        return Err("Unknown INDEX subcommand".into());
    }
    let id = call.session.namespace;
    let entry = call.core.namespaces.get_mut(id).ok_or(super::DETACHED)?;
    if entry.is_away() {
        return Err(Refusal::postponed(id));
    }
    if call.request.count() > 2 {
        if !call.request.argument(2).is_some_and(|word| word.eq_ignore_ascii_case(b"RESET")) {
            return Err("Unknown INDEX DIRTY subcommand".into());
        }
        entry.reset_dirty();
        return call.ok();
    }
    let dirty = entry.dirty();
    let out = call.output.buffer();
    write::array(out, dirty.len());
    for segment in dirty {
        write::integer(out, segment.into());
    }
    Ok(())
}

/// `DATA RAW segment offset`: a record as it lies there.
pub(super) fn data(call: &mut Call<'_, '_>) -> Outcome {
    const INVALID: &str = "Invalid Request";
    check_filled(call, 2)?;
    if !call.argument(1).eq_ignore_ascii_case(b"RAW") {
        return Err("Unknown DATA subcommand".into());
    }
    check_filled(call, 4)?;
    let segment = u32::try_from(leading_number(call.argument(2))).map_err(|_| INVALID)?;
    let offset = u64::try_from(leading_number(call.argument(3))).map_err(|_| INVALID)?;
    let mut bytes = std::mem::take(&mut call.core.scratch);
    bytes.clear();
    let found = call.core.active(call.session).and_then(|namespace| {
        let active = namespace.stats().active_segment;
        match namespace.raw(segment, offset, &mut bytes) {
            Ok(record) => record.ok_or_else(|| "EOF".into()),
            // Nothing was written to it yet.
            Err(Error::UnknownHistory { .. }) if segment == active => Err("EOF".into()),
            Err(error) => Err(common(&error, INVALID)),
        }
    });
    let outcome = found.map(|record| {
        let (key, payload) = bytes.split_at(record.key_size.min(bytes.len()));
        let out = call.output.buffer();
        write::array(out, 6);
        write::bulk(out, key);
        write::integer(out, i64::try_from(record.previous.0).unwrap_or(i64::MAX));
        write::bulk(out, format!("{:#010x}", record.payload_crc).as_bytes());
        write::integer(out, record.deleted.into());
        write::integer(out, record.timestamp.into());
        if record.deleted {
            write_nil(out, call.session);
        } else {
            write::bulk(out, payload);
        }
    });
    call.core.scratch = bytes;
    outcome
}

/// `REPL namespace`: the number of its newest write. `REPL namespace after`: follow. `REPL ACK seq`: a
/// follower's word for what it has. `REPL APPLY namespace seq SET|DEL|FLUSH ...`: a write that was made
/// elsewhere.
pub(super) fn repl(call: &mut Call<'_, '_>) -> Outcome {
    match (call.argument(1), call.count()) {
        (b"ACK", 3) => {
            let seq = sequence(call.argument(2))?;
            // Without a reply: a follower's connection carries nothing but writes.
            call.core.follower_has(call.session, seq)
        }
        (b"APPLY", 5..) => apply(call),
        (name, 2) => {
            let id = call.core.namespaces.find(name).ok_or("Namespace not found")?;
            let entry = call.core.namespaces.get_mut(id).ok_or("Namespace not found")?;
            let last = entry.loaded()?.stats().last;
            write::integer(call.output.buffer(), i64::try_from(last.0).unwrap_or(i64::MAX));
            Ok(())
        }
        (name, 3) => {
            if call.session.follows.is_some() {
                return Err("This connection follows a namespace already".into());
            }
            let after = sequence(call.argument(2))?;
            let id = call.core.namespaces.find(name).ok_or("Namespace not found")?;
            call.core.follow(call.session, id, after)?;
            call.ok()
        }
        _ => Err("Unexpected arguments".into()),
    }
}

fn apply(call: &mut Call<'_, '_>) -> Outcome {
    let id = call.core.namespaces.find(call.argument(2)).ok_or("Namespace not found")?;
    let seq = sequence(call.argument(3))?;
    let time = |index| {
        let number = leading_number(call.argument(index));
        u32::try_from(number).map_err(|_| Refusal::from("Invalid timestamp"))
    };
    let (change, failure) = match (call.argument(4), call.count()) {
        (b"SET", 8) => {
            let (key, value) = (call.argument(5), call.argument(6));
            (Change::Set { key, value, timestamp: time(7)? }, SET_FAILED)
        }
        (b"DEL", 7) => {
            (Change::Delete { key: call.argument(5), timestamp: time(6)? }, DELETE_FAILED)
        }
        (b"FLUSH", 5) => return apply_flush(call, id, seq),
        _ => return Err("Unexpected arguments".into()),
    };
    let entry = call.core.namespaces.get_mut(id).ok_or("Namespace not found")?;
    let applied = entry.loaded()?.apply(&LogRecord { seq, change });
    applied.map_err(|error| match error {
        Error::Busy => Refusal::postponed(id),
        other => not_applied(&other, failure),
    })?;
    let begin = call.output.end();
    write::integer(call.output.buffer(), i64::try_from(seq.0).unwrap_or(i64::MAX));
    call.output.hold(begin, id, seq, failure);
    call.core.touch(id);
    Ok(())
}

/// A `FLUSH` that was made elsewhere. It waits for the disk, so it is done beside the loop.
fn apply_flush(call: &mut Call<'_, '_>, id: NamespaceId, seq: SeqNo) -> Outcome {
    let asker = call.asker();
    call.core.begin(id, Some(asker), None, move |mut namespace| {
        let applied = namespace.apply(&LogRecord { seq, change: Change::Clear });
        let answer = applied.map(|()| Answer::Integer(seq.0));
        Worked::kept(namespace, answer.map_err(|error| not_applied(&error, DELETE_FAILED)))
    })?;
    call.later()
}

fn not_applied(error: &Error, failure: &'static str) -> Refusal {
    match error {
        Error::OutOfOrder { seq, last } => format!("Write {} comes after {}", seq.0, last.0).into(),
        other => common(other, failure),
    }
}

/// The number of a write.
fn sequence(text: &[u8]) -> Result<SeqNo, Refusal> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.map(SeqNo).ok_or_else(|| "Invalid sequence number".into())
}

/// There are at least `least` arguments, and none is empty.
fn check_filled(call: &Call<'_, '_>, least: usize) -> Outcome {
    if call.count() < least {
        return Err("Missing arguments".into());
    }
    if call.request.arguments().any(<[u8]>::is_empty) {
        return Err("Invalid argument".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use zdb_client::Value;

    use super::super::testing::{Server, bulk, error, simple};

    #[test]
    fn dirty_files_are_listed_until_somebody_says_so() {
        let mut server = Server::new();
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        ask(&[b"SET", b"a", b"1"]);
        ask(&[b"NSJUMP"]);
        ask(&[b"SET", b"b", b"1"]);
        let both = Value::Array(vec![Value::Integer(0), Value::Integer(1)]);
        assert_eq!(ask(&[b"INDEX", b"DIRTY"]), both);
        assert_eq!(ask(&[b"INDEX", b"DIRTY", b"RESET"]), simple("OK"));
        assert_eq!(ask(&[b"INDEX", b"DIRTY"]), Value::Array(vec![]));
    }

    #[test]
    fn records_are_shown_as_they_lie_deletions_and_empty_ones_too() {
        let mut server = Server::new();
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        assert_eq!(ask(&[b"DATA", b"RAW", b"0", b"100000"]), error("EOF"));
        assert_eq!(ask(&[b"DATA", b"RAW", b"9", b"0"]), error("Invalid Request"));
        ask(&[b"SET", b"abc", b"hello", b"42"]);
        let Value::Array(record) = ask(&[b"DATA", b"RAW", b"0", b"0"]) else { panic!() };
        let [key, _, crc, flags, time, payload] = record.as_slice() else { panic!() };
        assert_eq!((key, payload), (&bulk(b"abc"), &bulk(b"hello")));
        assert_eq!((flags, time), (&Value::Integer(0), &Value::Integer(42)));
        // As the existing server computes it (vector data-raw).
        assert_eq!(crc, &bulk(b"0xdf03cd79"));
    }

    #[test]
    fn a_follower_gets_what_is_durable_and_its_copy_is_the_same() {
        let mut server = Server::new();
        let mut client = server.client();
        server.ask(&mut client, &[b"SET", b"a", b"1", b"10"]);
        server.ask(&mut client, &[b"SET", b"b", b"2", b"11"]);
        server.ask(&mut client, &[b"DEL", b"a", b"12"]);
        let mut follower = server.client();
        assert_eq!(server.ask(&mut follower, &[b"REPL", b"default", b"0"]), simple("OK"));
        let records = server.feed(&mut follower);
        assert_eq!(records.len(), 3, "{records:?}");
        server.ask(&mut client, &[b"NSNEW", b"copy"]);
        for record in records {
            let Value::Array(fields) = record else { panic!() };
            let words: Vec<Vec<u8>> = fields
                .into_iter()
                .map(|field| match field {
                    Value::Integer(number) => number.to_string().into_bytes(),
                    Value::Bulk(bytes) => bytes,
                    other => panic!("{other:?}"),
                })
                .collect();
            let mut arguments: Vec<&[u8]> = vec![b"REPL", b"APPLY", b"copy"];
            arguments.extend(words.iter().map(Vec::as_slice));
            let applied = server.ask(&mut client, &arguments);
            assert!(matches!(applied, Value::Integer(1..=3)), "{applied:?}");
        }
        server.ask(&mut client, &[b"SELECT", b"copy"]);
        assert_eq!(server.ask(&mut client, &[b"GET", b"a"]), Value::Nil);
        assert_eq!(server.ask(&mut client, &[b"GET", b"b"]), bulk(b"2"));
        assert_eq!(server.ask(&mut client, &[b"KEYTIME", b"b"]), Value::Integer(11));
        let late = server.ask(&mut client, &[b"REPL", b"APPLY", b"copy", b"3", b"FLUSH"]);
        assert_eq!(late, error("Write 3 comes after 3"));
        let flush: [&[u8]; 5] = [b"REPL", b"APPLY", b"copy", b"4", b"FLUSH"];
        server.send(&mut client, &flush);
        assert_eq!(server.received(&mut client), [], "it is done beside the loop");
        assert!(server.run_pending());
        server.deliver(&mut client);
        assert_eq!(server.received(&mut client), [Value::Integer(4)]);
        assert_eq!(server.ask(&mut client, &[b"DBSIZE"]), Value::Integer(0));
    }
}
