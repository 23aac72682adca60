//! PID 1 of a lab machine: runs commands for the test that booted it.
//!
//! One static binary in four roles:
//!
//! ```text
//!   kernel ── PID 1 (init.rs) ── mounts, modules; then reaps whatever dies
//!                │    │
//!                │    └── in a guest above a machine (guest.rs): the tools that its command line names
//!                │
//!                └── `serve` (serve.rs) ── the lab's requests, by wire.rs
//!                       │
//!                       └── commands (exec.rs): a test's programs, or this binary again,
//!                           as a tool: address, listen, ping, kvm-smoke, …
//! ```
//!
//! The server is a child, so that PID 1 can reap orphans without taking the exit statuses that
//! the server waits for. When the server ends, for whatever reason (the lab has gone away, the
//! stream is out of step, a panic), PID 1 switches the machine off: nothing here hangs.
//!
//! The tools exist because a lab machine has no shell and no `ip` or `ping`. Their texts are
//! for tests to read and stay simple.

mod blocks;
mod button;
mod exec;
mod guest;
mod init;
mod kvm;
mod mark;
mod net;
mod pattern;
mod serve;
mod stream;
mod talk;
mod tsc;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab_agent::wire::Power;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match tool(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent {}: {error:#}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

const USAGE: &str = "usage: lab-agent TOOL
  serve                               answer the lab (PID 1 starts this)
  address MAC|NAME ADDRESS/PREFIX     set an interface up and give it an address
  listen udp|tcp ADDRESS:PORT         echo what comes, for ever
  ping udp|tcp ADDRESS:PORT COUNT TIMEOUT_MS
                                      send and expect echoes; fails if any is missing
  kvm-smoke GUEST                     run a bare-metal guest on /dev/kvm
  count N                             spend a loop of N rounds, print the result
  sleep MS                            do nothing for a while
  exit STATUS                         end with that status
  disks                               print each disk's name, size in bytes and serial
  read-disk DEVICE SIZE DEPTH COUNT random|sequential
                                      read past the page cache, and print what it took
  check-disk DEVICE                   fill it, and read everything back
  read-file PATH                      read it, and print what it took
  write-file PATH SIZE                write it, flush, read it back
  mount KIND SOURCE FOLDER [ro]       mount a file system, in a folder that is made
  serve-streams ADDRESS:PORT          the other end of send and receive, for ever
  send|receive ADDRESS:PORT COUNT checked|unchecked
                                      data in bulk over TCP; print what it took
  round-trips ADDRESS:PORT COUNT SIZE datagrams to an echo; print what their median took
  mark-after-away                     spin until the wall clock jumps, and mark then
  power off|reboot|panic              the end of the machine
  await-button                        until the power button is pressed";

fn tool(args: &[&str]) -> Result<()> {
    match args {
        ["serve"] => serve::run(),
        ["address", mac, address] => net::set_address(mac, address),
        ["listen", transport, address] => talk::listen(transport.parse()?, address.parse()?),
        ["ping", transport, address, count, timeout_ms] => {
            let timeout = Duration::from_millis(timeout_ms.parse()?);
            talk::ping(transport.parse()?, address.parse()?, count.parse()?, timeout)
        }
        ["kvm-smoke", guest] => kvm::smoke(guest),
        ["count", rounds] => {
            println!("{}", count(rounds.parse()?));
            Ok(())
        }
        ["sleep", ms] => {
            std::thread::sleep(Duration::from_millis(ms.parse()?));
            Ok(())
        }
        ["exit", status] => std::process::exit(status.parse()?),
        ["disks"] => disks(),
        ["read-disk", device, size, depth, count, order] => {
            blocks::read(device, size, depth, count, order)
        }
        ["check-disk", device] => blocks::check(device),
        ["read-file", path] => blocks::read_file(path),
        ["write-file", path, size] => blocks::write_file(path, size),
        ["mount", kind, source, target] => init::mount_at(kind, source, target, false),
        ["mount", kind, source, target, "ro"] => init::mount_at(kind, source, target, true),
        ["serve-streams", address] => stream::serve(address.parse()?),
        [direction @ ("send" | "receive"), address, count, check] => {
            stream::transfer(direction, address, count, check)
        }
        ["round-trips", address, count, size] => {
            stream::round_trips(address.parse()?, count.parse()?, size.parse()?)
        }
        ["mark-after-away"] => {
            mark::mark_after_away();
            Ok(())
        }
        ["power", "off"] => serve::end(Power::Off),
        ["power", "reboot"] => serve::end(Power::Reboot),
        ["power", "panic"] => serve::end(Power::Panic),
        ["await-button"] => button::wait(),
        _ => bail!("{USAGE}"),
    }
}

/// A loop that the compiler can't take out: work of a known size for tests that count.
fn count(rounds: u64) -> u64 {
    (0..rounds).fold(0, |sum, round| std::hint::black_box(sum ^ round).wrapping_mul(3))
}

fn disks() -> Result<()> {
    let read = |path: String| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let entries = std::fs::read_dir("/sys/block").context("cannot list /sys/block")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    for name in names {
        let sectors: u64 = read(format!("/sys/block/{name}/size"))?.parse()?;
        let serial = read(format!("/sys/block/{name}/serial")).unwrap_or_default();
        println!("{name} {} {serial}", sectors * 512);
    }
    Ok(())
}
