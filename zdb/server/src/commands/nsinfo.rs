//! `NSINFO`: a namespace in lines of text, as clients parse them (`reference: zdb 2.3`, vectors `nsinfo*`).

use std::fmt::Write;

use zdb_engine::{Mode, Stats};
use zdb_resp::write;

use super::Call;
use super::spaces::{NOT_FOUND, find};
use crate::core::{Entry, NamespaceId};
use crate::refusal::Outcome;

const MIB: f64 = 1024.0 * 1024.0;

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
