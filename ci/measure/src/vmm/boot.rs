//! From the start of a VMM to its guest's first instructions, and what memory that takes.

use anyhow::{Context, Result};
use lab::Outcome;

use super::host::{Host, Run, ours, qemu};
use super::{mega, row};
use crate::table::{Goal, Table};

/// Both VMMs' guests get these, and the words of a row.
const NEUTRAL: &str = "quiet reboot=k panic=1 8250.nr_uarts=0 pci=noearly";
/// What our own command line is in `vmm-spec`, for a guest without consoles.
const OWN: &str = "quiet panic=-1 cryptomgr.notests rcupdate.rcu_expedited=1 i8042.noaux i8042.nomux \
                   i8042.dumbkbd pci=noearly no_timer_check tsc=reliable 8250.nr_uarts=0";
/// The agent is to do nothing but to switch off.
const NO_TOOLS: &str = " lab.run=";
const KIB_IN_MIB: f64 = 1024.0;
/// Until a VMM has given back what it needed to start.
const SETTLE_MS: u32 = 3000;

/// Where a goal has not been reached yet, the limit is a twentieth above what was measured, and the row
/// names the goal.
const NEUTRAL_MI_MAX: f64 = 1720.0;
const OWN_MI_MAX: f64 = 780.0;
const NULL_MI_MAX: f64 = 39.5;
/// Firecracker's figure for a boot without devices; ours has a PCI bus with pvpanic on it.
const USER_EXITS_MAX: f64 = 82.0;
const EXITS_MAX: f64 = 2200.0;
const OUTSIDE_MIB_MAX: f64 = 3.0;
const ANONYMOUS_MIB_MAX: f64 = 0.47;
const GUEST_MIB_MAX: f64 = 84.0;
const BINARY_MIB_MAX: f64 = 5.0;
const JAIL_MI_MAX: f64 = 12.0;

/// Boots of ours, beside QEMU's where the machine has it.
pub(super) fn rows(host: &Host, table: &mut Table) -> Result<()> {
    let binary = host.vmm_size as f64 / KIB_IN_MIB / KIB_IN_MIB;
    table.push(row("binary, static and stripped, MiB", binary, None, Goal::AtMost(BINARY_MIB_MAX)));
    let null = ["/vmm", "run", "--no-jail", "--kernel", "/null", "--initramfs", "/agent.img"];
    let null = [&null[..], &["--on-reset", "exit", "--memory", "256M"]].concat();
    // The first run also brings the program and the module of KVM to life.
    host.run(&null, &Outcome::Exited(10))?;
    let to_null = mega(host.run(&null, &Outcome::Exited(10))?.mark()?);
    table.push(row(
        "null guest: first instruction, Mi (goal 30)",
        to_null,
        None,
        Goal::AtMost(NULL_MI_MAX),
    ));
    for (what, words, limit) in [
        ("boot, neutral: first user instruction, Mi (goal 1500)", NEUTRAL, NEUTRAL_MI_MAX),
        ("boot, own command line: first user instruction, Mi (goal 650)", OWN, OWN_MI_MAX),
    ] {
        let is_own = words == OWN;
        let words = [words, NO_TOOLS].concat();
        let run = host.run(&ours(&words, &[]), &Outcome::Exited(0))?;
        let peer = || -> Result<f64> {
            Ok(mega(host.run(&qemu(&words, &[]), &Outcome::Exited(0))?.mark()?))
        };
        let peer = host.has_qemu.then(peer).transpose()?;
        table.push(row(what, mega(run.mark()?), peer, Goal::AtMost(limit)));
        if is_own {
            let exits = user_exits(&run)?;
            let goal = Goal::AtMost(USER_EXITS_MAX);
            table.push(row("boot, own command line: exits to the VMM", exits, None, goal));
        }
    }
    let words = [OWN, NO_TOOLS].concat();
    let free = ours(&words, &[]);
    let exits = host.exits_of(&free)? as f64;
    table.push(row("boot, own command line: exits in all", exits, None, Goal::AtMost(EXITS_MAX)));
    let jailed: Vec<&str> = free.iter().copied().filter(|word| *word != "--no-jail").collect();
    let (jailed, free) = (
        host.run(&jailed, &Outcome::Exited(0))?.mark()?,
        host.run(&free, &Outcome::Exited(0))?.mark()?,
    );
    let jail = mega(jailed) - mega(free);
    table.push(row("what the jail adds to that, Mi", jail, None, Goal::AtMost(JAIL_MI_MAX)));
    memory_rows(host, table)
}

/// Times that a vCPU came back to our process, as its log says at the end.
fn user_exits(run: &Run) -> Result<f64> {
    let log = String::from_utf8_lossy(&run.output.stderr).into_owned();
    let exits = log.split("exits=").nth(1).and_then(|text| text.split_whitespace().next());
    let exits = exits.and_then(|text| text.parse().ok());
    exits.with_context(|| format!("no count of exits in: {log}"))
}

/// What a VMM with an idle guest has in memory.
fn memory_rows(host: &Host, table: &mut Table) -> Result<()> {
    let words =
        format!("{NEUTRAL} cryptomgr.notests console=ttyS0 lab.run=read-file,/init;sleep,9999999");
    let words = words.replace("8250.nr_uarts=0 ", "");
    let command = ours(&words, &["--serial", "file=/tmp/console"]).join("' '");
    // The agent reads itself as the sign that it runs.
    let script = format!(
        ": > /tmp/console; '{command}' & pid=$!; n=0\n\
         while [ $n -lt 1000 ]; do n=$((n+1)); /init sleep 20\n\
         case $(cat /tmp/console) in *read-file:*) break;; esac; done\n\
         /init sleep {SETTLE_MS}; cat /proc/$pid/smaps; kill $pid; wait $pid"
    );
    let run = host.script("", &script, "")?;
    let memory = Memory::of_smaps(&run.output.text());
    let mib = |kib: u64| kib as f64 / KIB_IN_MIB;
    for (what, kib, limit) in [
        ("memory outside the guest, resident, MiB", memory.outside, OUTSIDE_MIB_MAX),
        (
            "memory outside the guest, anonymous, MiB (goal 0.3)",
            memory.anonymous,
            ANONYMOUS_MIB_MAX,
        ),
        ("memory of a booted guest, resident, MiB", memory.guest, GUEST_MIB_MAX),
    ] {
        table.push(row(what, mib(kib), None, Goal::AtMost(limit)));
    }
    Ok(())
}

/// In KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    guest: u64,
    outside: u64,
    /// Of what is outside.
    anonymous: u64,
}

impl Memory {
    /// Sums up `/proc/PID/smaps`. The guest's memory is what is kept out of core dumps (`dd`).
    fn of_smaps(text: &str) -> Self {
        let (mut sum, mut rss, mut anonymous) = (Self::default(), 0, 0);
        for line in text.lines() {
            let (key, value) = line.split_once(':').unwrap_or_default();
            let kib =
                || value.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
            match key {
                "Rss" => rss = kib(),
                "Anonymous" => anonymous = kib(),
                // The last line of each mapping.
                "VmFlags" if value.split(' ').any(|flag| flag == "dd") => sum.guest += rss,
                "VmFlags" => {
                    sum.outside += rss;
                    sum.anonymous += anonymous;
                }
                _ => {}
            }
        }
        sum
    }
}

/// A kernel's files copied into guest memory, and mapped.
pub(super) fn loading_rows(host: &Host, table: &mut Table) -> Result<()> {
    let boot = |options: &[&str]| -> Result<(f64, f64)> {
        let files = ["--no-serial", "--pci", "/vmlinux", "/agent.img", "--", OWN, NO_TOOLS];
        let run = host.run(&[&["/boot"], options, &files].concat(), &Outcome::Exited(0))?;
        let log = String::from_utf8_lossy(&run.output.stderr).into_owned();
        let anonymous = log.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous.and_then(|text| text.trim().strip_suffix(" kB"));
        let kib: f64 = kib.and_then(|kib| kib.parse().ok()).with_context(|| log.clone())?;
        Ok((mega(run.mark()?), kib / KIB_IN_MIB))
    };
    let (copied, mapped) = (boot(&[])?, boot(&["--map"])?);
    for (what, (copied, mapped)) in [
        ("kernel mapped, not copied: first user instruction, Mi", (copied.0, mapped.0)),
        ("kernel mapped, not copied: anonymous memory, MiB", (copied.1, mapped.1)),
    ] {
        let mut row = row(what, mapped, None, Goal::None);
        row.peer = Some(("copied", copied));
        table.push(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_summed_up_by_whose_they_are() {
        let mapping = |rss: u32, anonymous: u32, flags: &str| {
            format!(
                "7f00-7f01 rw-p 00000000 00:00 0\nSize: 99 kB\nRss:    {rss} kB\n\
                 Anonymous:   {anonymous} kB\nVmFlags: rd wr {flags}\n"
            )
        };
        let text = mapping(1000, 1000, "dd hg ") + &mapping(30, 4, "mr ") + &mapping(7, 7, "ac ");
        let sum = Memory { guest: 1000, outside: 37, anonymous: 11 };
        assert_eq!(Memory::of_smaps(&text), sum);
    }

    #[test]
    fn the_own_command_line_is_the_specifications() {
        let spec = vmm_spec::VmSpec { kernel: Some("/k".into()), ..vmm_spec::VmSpec::default() };
        assert_eq!(spec.verify().unwrap().cmdline, OWN);
    }
}
