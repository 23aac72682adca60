//! Namespaces: their coming, going and properties.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use zdb_engine::{
    Durability, Error, History, Mode, NAME_SIZE_MAX, Name, NameError, Password, Settings, Stats,
};
use zdb_resp::write;

use super::{Call, leading_number};
use crate::core::{Entry, NAMESPACE_COUNT_MAX, NamespaceId};
use crate::refusal::{Outcome, READ_ONLY, Refusal, common, display_chain};

/// Longest value of a property, in bytes.
const VALUE_SIZE_MAX: usize = 63;
/// Longest name of a property, in bytes.
const PROPERTY_SIZE_MAX: usize = 256;
const MIB: f64 = 1024.0 * 1024.0;

const NOT_FOUND: &str = "Namespace not found";
const NAME_TOO_LONG: &str = "Namespace too long";
const NOT_ALLOWED: &str = "This name is not allowed";
const EXPECTED_DURABILITY: &str =
    "Invalid property value (expected: none, group, interval:MILLISECONDS)";
const EXPECTED_HISTORY: &str = "Invalid property value (expected: none, all, SECONDS)";

/// `NSNEW name`.
pub(super) fn nsnew(call: &mut Call<'_, '_>) -> Outcome {
    const FAILED: &str = "Could not create namespace";
    let bytes = call.argument(1);
    let name = Name::new(bytes).map_err(|error| match error {
        NameError::TooLong { .. } => NAME_TOO_LONG,
        NameError::NotAllowed => NOT_ALLOWED,
    })?;
    let core = &mut call.core;
    if core.namespaces.find(bytes) == Some(core.default) {
        return Err(NOT_ALLOWED.into());
    }
    if core.namespaces.find(bytes).is_some() {
        return Err("This namespace is not available".into());
    }
    if core.namespaces.ids().len() >= NAMESPACE_COUNT_MAX {
        return Err(FAILED.into());
    }
    let made = core.new_namespace(&name).map_err(|error| common(&error, FAILED))?;
    core.namespaces.insert(Entry::new(name, Ok(made)));
    core.announce("namespace-created", bytes);
    call.ok()
}

/// `NSDEL name`.
pub(super) fn nsdel(call: &mut Call<'_, '_>) -> Outcome {
    const FAILED: &str = "Could not delete this namespace";
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
    let entry = call.core.namespaces.remove(id).ok_or(FAILED)?;
    for watcher in &entry.watchers {
        call.core.stop_waiting(watcher.client);
    }
    for follower in &entry.followers {
        let mut message = Vec::new();
        write::error(&mut message, super::DETACHED.text.as_bytes());
        call.core.messages.push((follower.client, message));
    }
    // Loaded namespaces can't be removed.
    drop(entry.namespace);
    if let Err(error) = call.core.engine.remove(&entry.name) {
        let error = display_chain(&error);
        tracing::error!(namespace = %entry.name, error, "not removed");
        let loaded = call.core.load(&entry.name).map_err(|error| unavailable(&error));
        call.core.namespaces.insert(Entry::new(entry.name, loaded));
        return Err(FAILED.into());
    }
    call.core.announce("namespace-deleted", name);
    call.ok()
}

/// `NSLIST`: names, in the order in which they came.
pub(super) fn nslist(call: &mut Call<'_, '_>) -> Outcome {
    let names: Vec<&[u8]> =
        call.core.namespaces.entries().map(|entry| entry.name.as_bytes()).collect();
    write::request(call.output.buffer(), &names);
    Ok(())
}

/// `NSSET name property value`.
pub(super) fn nsset(call: &mut Call<'_, '_>) -> Outcome {
    let (name, property, value) = (call.argument(1), call.argument(2), call.argument(3));
    if value.len() > VALUE_SIZE_MAX || property.len() > PROPERTY_SIZE_MAX {
        return Err("Argument too long".into());
    }
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
        return Err("This server instance is configured to use a single runtime mode".into());
    }
    change(&mut settings, property, value)?;
    if settings != *namespace.settings() {
        let updated = namespace.update(settings);
        updated.map_err(|error| common(&error, "Cannot update this namespace"))?;
    }
    call.core.announce("namespace-updated", name);
    call.ok()
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

/// `NSINFO name`.
pub(super) fn nsinfo(call: &mut Call<'_, '_>) -> Outcome {
    let id = find(call, call.argument(1))?;
    let entry = call.core.namespaces.get_mut(id).ok_or(NOT_FOUND)?;
    entry.loaded()?;
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = describe(call, id, &mut text);
    write::bulk(call.output.buffer(), text.as_bytes());
    Ok(())
}

fn describe(call: &Call<'_, '_>, id: NamespaceId, text: &mut String) -> std::fmt::Result {
    let core = &*call.core;
    let Some(entry) = core.namespaces.get(id) else { return Ok(()) };
    let Ok(namespace) = &entry.namespace else { return Ok(()) };
    let (stats, settings) = (namespace.stats(), namespace.settings());
    let yes = |is: bool| if is { "yes" } else { "no" };
    let name = String::from_utf8_lossy(entry.name.as_bytes());
    writeln!(text, "# namespace\nname: {name}\nentries: {}", stats.entry_count)?;
    writeln!(text, "public: {}\nworm: {}", yes(settings.public), yes(settings.worm))?;
    writeln!(text, "locked: {}", yes(settings.locked || settings.frozen))?;
    writeln!(text, "password: {}", yes(core.password(id).is_some()))?;
    writeln!(text, "data_size_bytes: {}", stats.value_size)?;
    writeln!(text, "data_size_mb: {:.2}", mib(stats.value_size))?;
    writeln!(text, "data_limits_bytes: {}", settings.size_max)?;
    writeln!(text, "index_size_bytes: {}", stats.index_memory_size)?;
    writeln!(text, "index_size_kb: {:.2}", mib(stats.index_memory_size) * 1024.0)?;
    writeln!(text, "next_internal_id: {:#x}", stats.next_id)?;
    let mode = match settings.mode {
        Mode::User => "userkey",
        Mode::Sequential => "sequential",
    };
    writeln!(text, "mode: {mode}")?;
    describe_health(text, entry, &stats)?;
    if settings.size_max > 0 {
        let left = settings.size_max.saturating_sub(stats.value_size);
        writeln!(text, "space_available: {left}")?;
    }
    let space = core.engine.free_space().unwrap_or_default();
    for (kind, space) in [("index", space.index), ("data", space.data)] {
        writeln!(text, "{kind}_disk_freespace_bytes: {}", space.free)?;
        writeln!(text, "{kind}_disk_freespace_mb: {:.2}", mib(space.free))?;
    }
    if !call.session.is_admin {
        return Ok(());
    }
    let active = stats.active_segment;
    for (kind, file, folder) in
        [("data", 'd', namespace.data_folder()), ("index", 'i', namespace.index_folder())]
    {
        writeln!(text, "{kind}_path: {}", folder.display())?;
        writeln!(text, "{kind}_active: {}", folder.join(format!("{file}{active}")).display())?;
    }
    writeln!(text, "data_current_id: {active}\ndata_current_offset: {}", stats.active_offset)
}

fn describe_health(text: &mut String, entry: &Entry, stats: &Stats) -> std::fmt::Result {
    let errors = &entry.errors;
    let rows = [
        ("index", stats.index_error_count, errors.index_last, 0),
        ("data", stats.data_error_count, errors.data_last, stats.damaged_record_count),
    ];
    for (kind, count, last, faults) in rows {
        writeln!(text, "stats_{kind}_io_errors: {count}")?;
        writeln!(text, "stats_{kind}_io_error_last: {last}")?;
        writeln!(text, "stats_{kind}_faults: {faults}")?;
    }
    Ok(())
}

/// For people; exact up to 2^53 bytes.
#[expect(clippy::cast_precision_loss, reason = "a figure for people, with two decimals")]
fn mib(size: u64) -> f64 {
    size as f64 / MIB
}

/// `NSJUMP`: the next write goes to a new segment.
pub(super) fn nsjump(call: &mut Call<'_, '_>) -> Outcome {
    call.core.rotate(call.session.namespace)?;
    call.ok()
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
    namespace.clear().map_err(|error| common(&error, "Cannot remove all keys"))?;
    let name = namespace.name().as_bytes().to_vec();
    call.core.touch(id);
    call.core.announce("namespace-reloaded", &name);
    call.ok()
}

/// `RELOAD name`: reads a namespace from the disk again.
pub(super) fn reload(call: &mut Call<'_, '_>) -> Outcome {
    let name = call.argument(1);
    let id = find(call, name)?;
    call.core.reload(id).map_err(|error| common(&error, "Could not reload this namespace"))?;
    call.core.announce("namespace-reloaded", name);
    call.ok()
}

/// `NSSNAP name data-folder index-folder`: an instant copy by hard links, below two folders on the same
/// disks, which another server or `zdb backup` can open; the number of its newest write. On the unix socket
/// only, because it writes where it is told.
pub(super) fn nssnap(call: &mut Call<'_, '_>) -> Outcome {
    if !call.session.is_local {
        return Err(Refusal::unauthorized("Snapshots are made over the unix socket only"));
    }
    let id = find(call, call.argument(1))?;
    let [data, index] = [2, 3].map(|number| Path::new(OsStr::from_bytes(call.argument(number))));
    if !data.is_absolute() || !index.is_absolute() {
        return Err("A snapshot's folders are absolute paths".into());
    }
    let entry = call.core.namespaces.get_mut(id).ok_or(NOT_FOUND)?;
    let seq = entry.loaded()?.snapshot(data, index);
    let seq = seq.map_err(|error| common(&error, "Could not make this snapshot"))?;
    // It ended the segment that was written.
    call.core.announce_rotation(id);
    write::integer(call.output.buffer(), i64::try_from(seq.0).unwrap_or(i64::MAX));
    Ok(())
}

fn find(call: &Call<'_, '_>, name: &[u8]) -> Result<NamespaceId, Refusal> {
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
