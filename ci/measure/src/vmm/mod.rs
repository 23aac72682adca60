//! The VMM against QEMU's microvm: the same kernel, initramfs and command line, in one machine of the
//! lab that counts instructions.
//!
//! A guest here is Debian's cloud kernel and the guests' initramfs, with the lab's agent for its init:
//! the agent marks its first instructions by a write to a port, which the machine's kernel traces with
//! the time (`trace`), and then runs what its command line says. So a row counts from the start of the
//! VMM's process to the guest's first user instruction, or what a request costs as the guest sees it.
//! Instructions are those of host and guest together, repeatable to a fraction of a percent whatever
//! else this machine does. Mi are millions of them.
//!
//! | room | rows |
//! |---|---|
//! | `boot` | boots, exits, the null guest, memory |
//! | `io` | disk and network |
//! | `share` | a root from an image: its boot, and reading it |
//! | `clones` | guests that go on from a snapshot |
//! | `host` | the machine that all of it runs in |

mod boot;
mod clones;
mod host;
mod io;
pub(crate) mod null_guest;
mod share;
mod trace;

use crate::table::{Goal, Row, Table};

use host::Host;

/// Everything, beside QEMU's figures where it can do the same.
pub(crate) fn compared() -> anyhow::Result<Table> {
    let host = Host::boot(true)?;
    let mut table = Table::default();
    boot::rows(&host, &mut table)?;
    boot::loading_rows(&host, &mut table)?;
    io::rows(&host, &mut table)?;
    share::rows(&host, &mut table)?;
    clones::rows(&host, &mut table)?;
    Ok(table)
}

/// What has hard limits, of ours alone.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let host = Host::boot(false)?;
    let mut table = Table::default();
    boot::rows(&host, &mut table)?;
    io::rows(&host, &mut table)?;
    Ok(table)
}

/// A row of ours with a goal, and a peer's figure where there is one.
fn row(what: &str, ours: f64, peer: Option<f64>, goal: Goal) -> Row {
    Row { what: what.to_owned(), ours, peer: peer.map(|peer| ("QEMU microvm", peer)), goal }
}

/// Millions of instructions.
fn mega(instructions: u64) -> f64 {
    instructions as f64 / 1e6
}
