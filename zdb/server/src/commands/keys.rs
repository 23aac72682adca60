//! Values by key.

use zdb_engine::{Error, Found, Health, KEY_SIZE_MAX, Metadata, WARM_COUNT_MAX};
use zdb_resp::write;

use super::{Call, leading_number, write_nil};
use crate::refusal::{
    DELETE_FAILED, Outcome, PERMISSION_DENIED, READ_ONLY, Refusal, delete, read, set as set_error,
};

/// Values from this size on are sent from their file, without a copy. Below, a copy is cheaper than
/// the system calls that this takes.
const EXTENT_SIZE_MIN: usize = 64 * 1024;
/// Most bytes that one reply copies into memory; `MGET` may ask for far more.
const REPLY_SIZE_MAX: usize = 64 * 1024 * 1024;

const INVALID_KEY: &str = "Invalid key";

/// `SET key value [timestamp]`: the key, or nil if the value is stored already.
pub(super) fn set(call: &mut Call<'_, '_>) -> Outcome {
    let (key, value) = (call.argument(1), call.argument(2));
    if key.len() > KEY_SIZE_MAX {
        return Err("Key too large".into());
    }
    let timestamp = timestamp(call, 3)?;
    if !call.session.is_writable {
        return Err(READ_ONLY);
    }
    let written = call.core.active(call.session)?.set(key, value, timestamp);
    let written = written.map_err(|error| match error {
        Error::Busy => Refusal::postponed(call.session.namespace),
        other => set_error(&other),
    })?;
    let Some(written) = written else {
        call.nil();
        return Ok(());
    };
    let begin = call.output.end();
    match written.id {
        Some(id) => write::bulk(call.output.buffer(), &id.to_le_bytes()),
        None => write::bulk(call.output.buffer(), key),
    }
    call.core.hold_set(call.session, call.output, begin, written.seq);
    Ok(())
}

/// `DEL key [timestamp]`.
pub(super) fn del(call: &mut Call<'_, '_>) -> Outcome {
    let key = key(call)?;
    let timestamp = timestamp(call, 2)?;
    if !call.session.is_writable {
        return Err(READ_ONLY);
    }
    let deleted = call.core.active(call.session)?.delete(key, timestamp);
    let deleted = deleted.map_err(|error| match error {
        Error::Busy => Refusal::postponed(call.session.namespace),
        other => delete(&other),
    })?;
    let seq = deleted.ok_or("Key not found")?;
    let begin = call.output.end();
    write::simple(call.output.buffer(), b"OK");
    call.core.hold(call.session, call.output, begin, seq, DELETE_FAILED);
    Ok(())
}

/// `GET key`.
pub(super) fn get(call: &mut Call<'_, '_>) -> Outcome {
    let key = key(call)?;
    write_value(call, key)
}

/// `MGET key...`: a value that can't be read is an error inside the array.
pub(super) fn mget(call: &mut Call<'_, '_>) -> Outcome {
    if call.count() < 2 {
        return Err("Invalid arguments".into());
    }
    let request = call.request;
    if request.arguments().skip(1).any(|key| key.len() > KEY_SIZE_MAX) {
        return Err(INVALID_KEY.into());
    }
    if call.core.active(call.session)?.settings().frozen {
        return Err(read(&zdb_engine::Error::Frozen));
    }
    write::array(call.output.buffer(), request.count() - 1);
    let mut copied = 0;
    for (index, key) in request.arguments().skip(1).enumerate() {
        if index % WARM_COUNT_MAX == 0
            && let Ok(namespace) = call.core.active(call.session)
        {
            namespace.warm(request.arguments().skip(1 + index));
        }
        let before = call.output.buffer().len();
        let written = if key.is_empty() {
            call.nil();
            Ok(())
        } else if copied > REPLY_SIZE_MAX {
            Err(Refusal::from("Reply too large, ask for less at once"))
        } else {
            write_value(call, key)
        };
        if let Err(refusal) = written {
            write::error(call.output.buffer(), refusal.text.as_bytes());
        }
        copied += call.output.buffer().len().saturating_sub(before);
    }
    Ok(())
}

/// `EXISTS key`.
pub(super) fn exists(call: &mut Call<'_, '_>) -> Outcome {
    let found = metadata(call)?;
    write::integer(call.output.buffer(), found.is_some().into());
    Ok(())
}

/// `LENGTH key`: bytes of the value.
pub(super) fn length(call: &mut Call<'_, '_>) -> Outcome {
    let found = metadata(call)?;
    write_integer(call, found.map(|found| i64::try_from(found.size).unwrap_or(i64::MAX)))
}

/// `KEYTIME key`: the value's timestamp.
pub(super) fn keytime(call: &mut Call<'_, '_>) -> Outcome {
    let found = metadata(call)?;
    write_integer(call, found.map(|found| found.timestamp.into()))
}

/// `CHECK key`: whether the record is as it was written.
pub(super) fn check(call: &mut Call<'_, '_>) -> Outcome {
    let key = key(call)?;
    let health = call.core.active(call.session)?.check(key).map_err(|error| read(&error))?;
    let number = health.map(|health| match health {
        Health::Good => 1,
        Health::Bad => 0,
        Health::Unreadable => -1,
    });
    write_integer(call, number)
}

/// The key of commands that have one.
fn key<'r>(call: &Call<'_, 'r>) -> Result<&'r [u8], Refusal> {
    let key = call.argument(1);
    if key.len() > KEY_SIZE_MAX { Err(INVALID_KEY.into()) } else { Ok(key) }
}

/// The time of a write: an administrator may say which.
fn timestamp(call: &Call<'_, '_>, index: usize) -> Result<u32, Refusal> {
    let Some(text) = call.request.argument(index) else { return Ok(call.core.clock.unix) };
    if !call.session.is_admin {
        return Err(PERMISSION_DENIED);
    }
    // Cut to 32 bits without a word, as clients are used to.
    let [a, b, c, d, ..] = leading_number(text).to_le_bytes();
    Ok(u32::from_le_bytes([a, b, c, d]))
}

fn metadata(call: &mut Call<'_, '_>) -> Result<Option<Metadata>, Refusal> {
    let key = key(call)?;
    call.core.active(call.session)?.metadata(key).map_err(|error| read(&error))
}

fn write_integer(call: &mut Call<'_, '_>, number: Option<i64>) -> Outcome {
    match number {
        Some(number) => write::integer(call.output.buffer(), number),
        None => call.nil(),
    }
    Ok(())
}

fn write_value(call: &mut Call<'_, '_>, key: &[u8]) -> Outcome {
    let namespace = call.core.active(call.session)?;
    let out = call.output.buffer();
    let found = namespace.get(key, EXTENT_SIZE_MIN, out, write::bulk_header);
    match found.map_err(|error| read(&error))? {
        Found::Missing => write_nil(out, call.session),
        Found::Inline { .. } => out.extend_from_slice(b"\r\n"),
        Found::Extent(extent) => {
            let size = usize::try_from(extent.size).map_err(|_| "Internal Error")?;
            write::bulk_header(out, size);
            call.output.push_file(extent);
            call.output.buffer().extend_from_slice(b"\r\n");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use zdb_client::Value;

    use super::super::testing::{Server, bulk, error, simple};

    #[test]
    fn what_is_set_is_there_until_it_is_deleted() {
        let mut server = Server::new();
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        assert_eq!(ask(&[b"SET", b"k", b"value", b"77"]), bulk(b"k"));
        assert_eq!(ask(&[b"SET", b"k", b"value"]), Value::Nil);
        assert_eq!(ask(&[b"GET", b"k"]), bulk(b"value"));
        assert_eq!(ask(&[b"EXISTS", b"k"]), Value::Integer(1));
        assert_eq!(ask(&[b"LENGTH", b"k"]), Value::Integer(5));
        assert_eq!(ask(&[b"KEYTIME", b"k"]), Value::Integer(77));
        assert_eq!(ask(&[b"CHECK", b"k"]), Value::Integer(1));
        assert_eq!(ask(&[b"DEL", b"k"]), simple("OK"));
        assert_eq!(ask(&[b"DEL", b"k"]), error("Key not found"));
        for command in [&b"GET"[..], b"LENGTH", b"KEYTIME", b"CHECK"] {
            assert_eq!(ask(&[command, b"k"]), Value::Nil);
        }
    }

    #[test]
    fn many_at_once_keep_their_order() {
        let mut server = Server::new();
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        let large = vec![b'x'; 100_000];
        ask(&[b"SET", b"a", b"1"]);
        ask(&[b"SET", b"b", &large]);
        let expected = Value::Array(vec![bulk(&large), Value::Nil, bulk(b"1"), Value::Nil]);
        assert_eq!(ask(&[b"MGET", b"b", b"", b"a", b"c"]), expected);
        assert_eq!(ask(&[b"MGET", b"a", &[b'k'; 256]]), error("Invalid key"));
    }
}
