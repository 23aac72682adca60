//! Clones of a template: what it takes until a guest goes on in user space, and what memory each has
//! to itself.
//!
//! The template is a guest as the grid runs them: an image's root under an overlay in memory, console,
//! socket device with a beating heart, entropy, balloon. It is saved while its init spins on the clock. In a
//! clone, the clock has jumped by the time that passed: the init sees it by the first thing that it does,
//! and makes its mark.

use std::path::Path;

use anyhow::{Context, Result};
use lab::{Machine, MachineBuilder, Outcome, Running};

use super::host::{GUEST_LIMIT, Host, MEMORY_MIB};
use super::{mega, row};
use crate::table::{Goal, Table};

/// Guest's first step in user space, from a template.
const RESTORE_MI_MAX: f64 = 60.0;
/// What an idle clone has to itself.
const UNIQUE_MIB_MAX: f64 = 8.0;
/// As many clones as fit beside one another into an emulated host.
const CLONES: usize = 8;
const SNAPSHOT: &str = "/template";

/// Both rows.
pub(super) fn rows(host: &Host, table: &mut Table) -> Result<()> {
    let step = host.repeat(|| first_step(host))?;
    let goal = Goal::AtMost(RESTORE_MI_MAX);
    table.push(row("from a template to user space, Mi", step, None, goal));
    let what = format!("unique memory of an idle clone, one of {CLONES}, MiB");
    let goal = Goal::AtMost(UNIQUE_MIB_MAX);
    let unique = host.repeat(|| unique_memory(host))?;
    table.push(row(&what, unique, None, goal));
    Ok(())
}

/// What templates are made of: a root with the agent as its init.
pub(super) fn add_guests(builder: MachineBuilder, agent: &Path) -> MachineBuilder {
    let builder = builder.host_file("/tree/sbin/init", 0o755, agent);
    let builder = builder.file("/tree/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\n");
    builder.program("/bin/sleep")
}

/// Mi from the start of `vmm restore` until the guest's init goes on.
fn first_step(host: &Host) -> Result<f64> {
    let machine = &host.machine;
    template(host, "mark-after-away", "mark-after-away: spinning")?;
    // Long enough for the guest to see that it was away.
    machine.run(&["/bin/sleep", "6"])?.success()?;
    let run = host.attempt(restore(machine, "clone"), &Outcome::Exited(0))?;
    machine.run(&["/bin/rm", "-r", SNAPSHOT])?.success()?;
    eprintln!("the clone was off after {:.0} Mi", mega(run.output.instructions()));
    Ok(mega(run.mark()?))
}

/// MiB that each of several idle clones has to itself.
fn unique_memory(host: &Host) -> Result<f64> {
    let machine = &host.machine;
    template(host, "read-file,/etc/passwd;sleep,99999999", "read-file: ")?;
    let names: Vec<String> = (0..CLONES).map(|index| format!("clone{index}")).collect();
    let start = |name: &String| restore(machine, name).spawn();
    let clones: Vec<Running> = names.iter().map(start).collect::<Result<_, _>>()?;
    machine.run(&["/bin/sleep", "10"])?.success()?;
    let mut unique = 0;
    for name in &names {
        let own = unique_kib(machine, name)?;
        eprintln!("{name}: {own} KiB its own");
        unique += own;
    }
    for name in &names {
        machine.run(&["/vmm", "stop", &socket(name)])?.success()?;
    }
    for clone in clones {
        clone.wait()?.success()?;
    }
    machine.run(&["/bin/rm", "-r", SNAPSHOT])?.success()?;
    Ok(unique as f64 / 1024.0 / CLONES as f64)
}

/// Boots a guest whose init runs `tools`, and saves it when its console says `ready`.
fn template(host: &Host, tools: &str, ready: &str) -> Result<()> {
    let words = format!(
        "quiet reboot=k panic=1 cryptomgr.notests rootdelay=1 8250.nr_uarts=0 pci=noearly \
         console=hvc0 root=vroot rootfstype=virtiofs guest.upper=memory lab.run={tools}"
    );
    let memory = format!("{MEMORY_MIB}M");
    let run = ["/vmm", "run", "--no-jail", "--kernel", "/vmlinux", "--initramfs", "/initramfs.img"];
    let guest = ["--memory", &memory, "--cmdline", &words, "--disk", "/cidata.img,readonly"];
    let devices =
        ["--fs", "tag=vroot,dir=/tree,readonly", "--rng", "--balloon", "--watchdog", "60"];
    let api = ["--vsock", "cid=3,socket=/run/template.vsock", "--api-socket", "/run/template.sock"];
    let run = [&run[..], &guest, &devices, &api, &["--console", "stdio"]].concat();
    let running = host.machine.command(&run).timeout(GUEST_LIMIT).spawn()?;
    host.wait_for(&running, ready)?;
    let save = ["/vmm", "snapshot", "/run/template.sock", SNAPSHOT, "--then", "stop"];
    host.wait(host.machine.command(&save).timeout(GUEST_LIMIT).spawn()?)?.success()?;
    host.wait(running)?.success()?;
    Ok(())
}

fn restore<'a>(machine: &'a Machine, name: &str) -> lab::Command<'a> {
    let (vsock, console) = (format!("socket=/run/{name}.vsock"), format!("file=/{name}.log"));
    let own = ["--vsock", &vsock, "--console", &console, "--api-socket", &socket(name)];
    let restore = [&["/vmm", "restore", SNAPSHOT, "--no-jail"], &own[..]].concat();
    machine.command(&restore).timeout(GUEST_LIMIT)
}

fn socket(name: &str) -> String {
    format!("/run/{name}.sock")
}

/// What the process of a VM has to itself, in KiB.
fn unique_kib(machine: &Machine, name: &str) -> Result<u64> {
    let status = machine.run(&["/vmm", "status", &socket(name), "--json"])?.success()?.text();
    let pid = number(&status, "\"pid\": ").context("a status without its process")?;
    let rollup = machine.pull(&format!("/proc/{pid}/smaps_rollup"))?;
    let rollup = String::from_utf8_lossy(&rollup).into_owned();
    let field = |name: &str| number(&rollup, name).with_context(|| format!("no {name} {rollup}"));
    Ok(field("Private_Clean:")? + field("Private_Dirty:")?)
}

fn number(text: &str, prefix: &str) -> Option<u64> {
    let rest = text.split_once(prefix)?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
