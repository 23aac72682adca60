//! Namespaces: their coming, going and properties.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use zdb_engine::{
    Durability, Error, History, Mode, NAME_SIZE_MAX, Name, NameError, Password, Settings,
};
use zdb_resp::write;

use super::{Call, leading_number};
use crate::core::{Answer, NAMESPACE_COUNT_MAX, NamespaceId, Worked};
use crate::refusal::{Outcome, READ_ONLY, Refusal, common, display_chain};

/// Longest value of a property, in bytes.
const VALUE_SIZE_MAX: usize = 63;
/// Words of an `NSMAKE`: its own, a name, and every property once.
pub(super) const MAKE_COUNT_MAX: usize = 2 + 2 * 10;
/// Longest name of a property, in bytes.
const PROPERTY_SIZE_MAX: usize = 256;

pub(super) const NOT_FOUND: &str = "Namespace not found";
const NAME_TOO_LONG: &str = "Namespace too long";
const SINGLE_MODE: &str = "This server instance is configured to use a single runtime mode";
const NOT_ALLOWED: &str = "This name is not allowed";
const EXPECTED_DURABILITY: &str =
    "Invalid property value (expected: none, group, interval:MILLISECONDS)";
const EXPECTED_HISTORY: &str = "Invalid property value (expected: none, all, SECONDS)";

/// What hooks are told when properties changed.
const UPDATED: &str = "namespace-updated";
/// And when all keys are others, or gone.
const RELOADED: &str = "namespace-reloaded";

/// `NSNEW name`.
pub(super) fn nsnew(call: &mut Call<'_, '_>) -> Outcome {
    let settings = call.core.new_settings();
    make(call, settings)
}

/// `NSMAKE name [property value …]`: `NSNEW`, and an `NSSET` for each property, as one step. Nobody selects
/// the namespace, and no crash leaves it, before it has all of them: who makes one for somebody with a
/// password leaves no moment in which it is everybody's.
pub(super) fn nsmake(call: &mut Call<'_, '_>) -> Outcome {
    let mut settings = call.core.new_settings();
    for index in (2..call.count()).step_by(2) {
        if index + 1 == call.count() {
            return Err("A property has no value".into());
        }
        let (property, value) = (call.argument(index), call.argument(index + 1));
        check_size(property, value)?;
        check_mode(call, property)?;
        change(&mut settings, property, value)?;
    }
    make(call, settings)
}

/// Has a namespace of the name that the request gives made.
fn make(call: &mut Call<'_, '_>, settings: Settings) -> Outcome {
    const FAILED: &str = "Could not create namespace";
    let bytes = call.argument(1);
    let name = Name::new(bytes).map_err(|error| match error {
        NameError::TooLong { .. } => NAME_TOO_LONG,
        NameError::NotAllowed => NOT_ALLOWED,
    })?;
    check_new(call, bytes, FAILED)?;
    let asker = call.asker();
    call.core.begin_new(name, settings, asker, FAILED);
    call.later()
}

/// Whether a namespace of that name may be made.
pub(super) fn check_new(call: &Call<'_, '_>, name: &[u8], failure: &'static str) -> Outcome {
    let namespaces = &call.core.namespaces;
    if let Some(id) = namespaces.find(name) {
        if id == call.core.default {
            return Err(NOT_ALLOWED.into());
        }
        return match namespaces.get(id) {
            // Whether it will be made is not known yet.
            Some(entry) if entry.is_coming => Err(Refusal::postponed(id)),
            _ => Err("This namespace is not available".into()),
        };
    }
    if namespaces.ids().len() >= NAMESPACE_COUNT_MAX {
        return Err(failure.into());
    }
    Ok(())
}

/// `NSDEL name`.
pub(super) fn nsdel(call: &mut Call<'_, '_>) -> Outcome {
    let name = call.argument(1);
    if name.len() > NAME_SIZE_MAX {
        return Err(NAME_TOO_LONG.into());
    }
    let id = call.core.namespaces.find(name).ok_or("This namespace doesn't exists")?;
    if id == call.core.default {
        return Err("Cannot remove default namespace".into());
    }
    if id == call.session.namespace {
        return Err("Cannot remove namespace you're currently using.".into());
    }
    let asker = call.asker();
    call.core.begin_removing(id, asker)?;
    call.later()
}

/// `NSLIST`: names, in the order in which they came.
pub(super) fn nslist(call: &mut Call<'_, '_>) -> Outcome {
    let known = call.core.namespaces.entries().filter(|entry| !entry.is_coming);
    let names: Vec<&[u8]> = known.map(|entry| entry.name.as_bytes()).collect();
    write::request(call.output.buffer(), &names);
    Ok(())
}

/// `NSSET name property value`.
pub(super) fn nsset(call: &mut Call<'_, '_>) -> Outcome {
    let (name, property, value) = (call.argument(1), call.argument(2), call.argument(3));
    check_size(property, value)?;
    let id = find(call, name)?;
    let is_default = id == call.core.default;
    let single_mode = call.core.policy.mode;
    let entry = call.core.namespaces.get_mut(id).ok_or(NOT_FOUND)?;
    let namespace = entry.loaded()?;
    let mut settings = namespace.settings().clone();
    if is_default && matches!(property, b"maxsize" | b"password" | b"public" | b"worm") {
        return Err("Cannot update default namespace".into());
    }
    if property == b"mode" && single_mode.is_some() {
        return Err(SINGLE_MODE.into());
    }
    change(&mut settings, property, value)?;
    if settings == *namespace.settings() {
        call.core.announce(UPDATED, name);
        return call.ok();
    }
    let asker = call.asker();
    call.core.begin(id, Some(asker), Some(UPDATED), |mut namespace| {
        let updated = namespace.update(settings);
        Worked::done(namespace, updated, "Cannot update this namespace")
    })?;
    call.later()
}

fn check_size(property: &[u8], value: &[u8]) -> Outcome {
    if value.len() > VALUE_SIZE_MAX || property.len() > PROPERTY_SIZE_MAX {
        return Err("Argument too long".into());
    }
    Ok(())
}

fn check_mode(call: &Call<'_, '_>, property: &[u8]) -> Outcome {
    if property == b"mode" && call.core.policy.mode.is_some() {
        return Err(SINGLE_MODE.into());
    }
    Ok(())
}

/// Sets a property of that name.
fn change(settings: &mut Settings, property: &[u8], value: &[u8]) -> Outcome {
    let is_on = value.first() == Some(&b'1');
    // A negative limit is none.
    let size = || u64::try_from(leading_number(value)).unwrap_or(0);
    match property {
        b"maxsize" => settings.size_max = size(),
        b"password" if value == b"*" => settings.password = None,
        b"password" => settings.password = Some(Password::new(value)),
        b"public" => settings.public = is_on,
        b"worm" => settings.worm = is_on,
        b"lock" => settings.locked = is_on,
        b"freeze" => settings.frozen = is_on,
        b"mode" => {
            settings.mode = match value {
                b"user" => Mode::User,
                b"seq" => Mode::Sequential,
                _ => return Err("Invalid property value (expected: user, seq)".into()),
            };
        }
        b"maxfilesize" => settings.file_size_max = size(),
        b"durability" => {
            settings.durability = parse_durability(value).ok_or(EXPECTED_DURABILITY)?;
        }
        b"history" => settings.history = parse_history(value).ok_or(EXPECTED_HISTORY)?,
        _ => return Err("Invalid property".into()),
    }
    Ok(())
}

/// `none`, `group`, `interval:MILLISECONDS`.
pub(crate) fn parse_durability(value: &[u8]) -> Option<Durability> {
    match value {
        b"none" => Some(Durability::None),
        b"group" => Some(Durability::Group),
        _ => {
            let millis = std::str::from_utf8(value.strip_prefix(b"interval:")?).ok()?;
            let millis: u32 = millis.parse().ok().filter(|millis| *millis > 0)?;
            Some(Durability::Interval(Duration::from_millis(millis.into())))
        }
    }
}

/// `none`, `all`, seconds.
fn parse_history(value: &[u8]) -> Option<History> {
    match value {
        b"none" => Some(History::None),
        b"all" => Some(History::All),
        seconds => {
            let seconds = std::str::from_utf8(seconds).ok()?.parse::<u32>().ok()?;
            Some(History::Younger(Duration::from_secs(seconds.into())))
        }
    }
}

/// `NSJUMP`: the next write goes to a new segment.
pub(super) fn nsjump(call: &mut Call<'_, '_>) -> Outcome {
    let asker = call.asker();
    call.core.begin_rotation(call.session.namespace, Some(asker))?;
    call.later()
}

/// `FLUSH`: removes all keys of a private namespace with a password.
pub(super) fn flush(call: &mut Call<'_, '_>) -> Outcome {
    let id = call.session.namespace;
    let has_password = call.core.password(id).is_some();
    let namespace = call.core.active(call.session)?;
    if namespace.settings().public || !has_password {
        return Err(Refusal::unauthorized("Flushing public namespace denied"));
    }
    if !call.session.is_writable {
        return Err(READ_ONLY);
    }
    let asker = call.asker();
    call.core.begin(id, Some(asker), Some(RELOADED), |mut namespace| {
        let cleared = namespace.clear();
        Worked::done(namespace, cleared, "Cannot remove all keys")
    })?;
    call.later()
}

/// `RELOAD name`: reads a namespace from the disk again.
pub(super) fn reload(call: &mut Call<'_, '_>) -> Outcome {
    let id = find(call, call.argument(1))?;
    let asker = call.asker();
    call.core.begin_reloading(id, asker)?;
    call.later()
}

/// `NSSNAP name data-folder index-folder`: an instant copy by hard links, below two folders on the same
/// disks, which another server or `zdb backup` can open; the number of its newest write. On the unix socket
/// only, because it writes where it is told.
pub(super) fn nssnap(call: &mut Call<'_, '_>) -> Outcome {
    if !call.session.is_local {
        return Err(Refusal::unauthorized("Snapshots are made over the unix socket only"));
    }
    let id = find(call, call.argument(1))?;
    let [data, index] =
        [2, 3].map(|number| PathBuf::from(OsStr::from_bytes(call.argument(number))));
    if !data.is_absolute() || !index.is_absolute() {
        return Err("A snapshot's folders are absolute paths".into());
    }
    let asker = call.asker();
    call.core.begin(id, Some(asker), None, move |mut namespace| {
        let seq = namespace.snapshot(&data, &index);
        let seq = seq.map_err(|error| common(&error, "Could not make this snapshot"));
        Worked::kept(namespace, seq.map(|seq| Answer::Integer(seq.0)))
    })?;
    call.later()
}

/// A namespace that a command names.
pub(super) fn find(call: &Call<'_, '_>, name: &[u8]) -> Result<NamespaceId, Refusal> {
    if name.len() > NAME_SIZE_MAX {
        return Err(NAME_TOO_LONG.into());
    }
    call.core.namespaces.find(name).ok_or_else(|| NOT_FOUND.into())
}

/// A namespace that could not be loaded again says why.
pub(crate) fn unavailable(error: &Error) -> String {
    format!("Namespace is not available: {}", display_chain(error))
}

#[cfg(test)]
mod tests {
    use zdb_client::Value;

    use super::super::testing::{Server, bulk, error, simple};
    use super::*;

    #[test]
    fn levels_and_histories_have_names() {
        assert_eq!(parse_durability(b"none"), Some(Durability::None));
        let half = Durability::Interval(Duration::from_millis(500));
        assert_eq!(parse_durability(b"interval:500"), Some(half));
        for bad in [&b""[..], b"always", b"interval:", b"interval:0", b"interval:-1"] {
            assert_eq!(parse_durability(bad), None);
        }
        assert_eq!(parse_history(b"60"), Some(History::Younger(Duration::from_secs(60))));
        assert_eq!(parse_history(b"-60"), None);
    }

    #[test]
    fn a_namespace_is_made_with_its_properties_or_not_at_all() {
        let mut server = Server::new();
        let (mut admin, mut user) = (server.client(), server.client());
        let made: &[&[u8]] = &[
            b"NSMAKE",
            b"n",
            b"mode",
            b"seq",
            b"public",
            b"0",
            b"password",
            b"pw",
            b"maxsize",
            b"9",
        ];
        assert_eq!(server.ask(&mut admin, made), simple("OK"));
        let refused = error("Namespace protected and private");
        assert_eq!(server.ask(&mut user, &[b"SELECT", b"n"]), refused);
        assert_eq!(server.ask(&mut user, &[b"SELECT", b"n", b"pw"]), simple("OK"));
        let full = server.ask(&mut user, &[b"SET", b"", b"0123456789"]);
        assert_eq!(full, error("No space left on this namespace"));
        let again = error("This namespace is not available");
        assert_eq!(server.ask(&mut admin, made), again);
        for (properties, text) in [
            (&[&b"mode"[..]][..], "A property has no value"),
            (&[b"mode", b"block"], "Invalid property value (expected: user, seq)"),
            (&[b"colour", b"red"], "Invalid property"),
            (&[b"password", &[b'x'; 64]], "Argument too long"),
        ] {
            let request: Vec<&[u8]> =
                [&b"NSMAKE"[..], b"m"].into_iter().chain(properties.iter().copied()).collect();
            assert_eq!(server.ask(&mut admin, &request), error(text));
            assert_eq!(server.ask(&mut user, &[b"SELECT", b"m"]), error("Namespace not found"));
        }
        server.restart();
        let mut user = server.client();
        assert_eq!(server.ask(&mut user, &[b"SELECT", b"n"]), refused);
    }

    #[test]
    fn flushing_removes_all_and_honours_worm_lock_freeze_and_rights() {
        let mut server = Server::new();
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        assert_eq!(ask(&[b"FLUSH"]), error("Flushing public namespace denied"));
        ask(&[b"NSNEW", b"n"]);
        ask(&[b"NSSET", b"n", b"password", b"pw"]);
        ask(&[b"SELECT", b"n"]);
        assert_eq!(ask(&[b"FLUSH"]), error("Flushing public namespace denied"));
        ask(&[b"NSSET", b"n", b"public", b"0"]);
        assert_eq!(ask(&[b"FLUSH"]), error("Namespace is in read-only mode"));
        ask(&[b"SELECT", b"n", b"pw"]);
        ask(&[b"SET", b"k", b"v"]);
        for (property, text) in [
            (&b"worm"[..], "Namespace is protected by worm mode"),
            (b"lock", "Namespace is temporarily locked (read-only)"),
            (b"freeze", "Namespace is temporarily frozen (read-write disabled)"),
        ] {
            ask(&[b"NSSET", b"n", property, b"1"]);
            assert_eq!(ask(&[b"FLUSH"]), error(text));
            ask(&[b"NSSET", b"n", property, b"0"]);
        }
        assert_eq!(ask(&[b"DBSIZE"]), Value::Integer(1));
        assert_eq!(ask(&[b"FLUSH"]), simple("OK"));
        assert_eq!(ask(&[b"DBSIZE"]), Value::Integer(0));
        assert_eq!(ask(&[b"GET", b"k"]), Value::Nil);
        server.restart();
        let mut client = server.client();
        server.ask(&mut client, &[b"SELECT", b"n", b"pw"]);
        assert_eq!(server.ask(&mut client, &[b"DBSIZE"]), Value::Integer(0));
    }

    #[test]
    fn a_freeze_outlives_a_restart_and_a_lock_does_not() {
        let mut server = Server::new();
        let mut client = server.client();
        for name in [&b"frozen"[..], b"locked"] {
            server.ask(&mut client, &[b"NSNEW", name]);
        }
        server.ask(&mut client, &[b"NSSET", b"frozen", b"freeze", b"1"]);
        server.ask(&mut client, &[b"NSSET", b"locked", b"lock", b"1"]);
        server.restart();
        let mut client = server.client();
        server.ask(&mut client, &[b"SELECT", b"frozen"]);
        let frozen = error("Namespace is temporarily frozen (read-write disabled)");
        assert_eq!(server.ask(&mut client, &[b"SET", b"k", b"v"]), frozen);
        server.ask(&mut client, &[b"SELECT", b"locked"]);
        assert_eq!(server.ask(&mut client, &[b"SET", b"k", b"v"]), bulk(b"k"));
    }

    #[test]
    fn a_snapshot_is_what_was_there_then() {
        let mut server = Server::new();
        let mut client = server.local_client();
        server.ask(&mut client, &[b"SET", b"k", b"before"]);
        let folder = tempfile::tempdir().unwrap();
        let paths = ["data", "index"].map(|name| folder.path().join(name));
        let [data, index] = paths.each_ref().map(|path| path.as_os_str().as_bytes());
        let mut far = server.client();
        let refused = error("Snapshots are made over the unix socket only");
        assert_eq!(server.ask(&mut far, &[b"NSSNAP", b"default", data, index]), refused);
        let made = server.ask(&mut client, &[b"NSSNAP", b"default", data, index]);
        assert_eq!(made, Value::Integer(1));
        server.ask(&mut client, &[b"SET", b"k", b"after"]);
        let options = zdb_engine::Options {
            reserve_size: 0,
            ..zdb_engine::Options::new(folder.path().join("data"), folder.path().join("index"))
        };
        let disk = std::sync::Arc::new(zdb_engine::storage::Disk);
        let engine = zdb_engine::Engine::open(disk, options).unwrap();
        let mut copy = engine.load(&Name::new(b"default").unwrap()).unwrap();
        let mut value = Vec::new();
        copy.get(b"k", usize::MAX, &mut value, |_, _| {}).unwrap();
        assert_eq!(value, b"before");
    }

    #[test]
    fn sessions_notice_that_their_namespace_is_gone() {
        let mut server = Server::new();
        let (mut one, mut two) = (server.client(), server.client());
        server.ask(&mut one, &[b"NSNEW", b"n"]);
        server.ask(&mut two, &[b"SELECT", b"n"]);
        assert_eq!(server.ask(&mut one, &[b"NSDEL", b"n"]), simple("OK"));
        server.ask(&mut one, &[b"NSNEW", b"n"]);
        let gone = "Your active namespace is not available anymore (probably removed).";
        assert_eq!(server.ask(&mut two, &[b"GET", b"k"]), error(gone));
        assert!(two.is_closing());
    }
}
