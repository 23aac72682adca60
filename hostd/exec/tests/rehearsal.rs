//! A machine that nobody reserved, with a VMM that pretends, under a real supervisor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hostd_exec::vm::VmConfig;
use hostd_exec::vm::rehearsal::rehearse;
use supervise::Client;

const LIMIT: Duration = Duration::from_secs(20);

struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A supervisor, in the folder that a test's own program is in; none if it is not built.
fn supervisor(folder: &Path) -> Option<(Supervisor, Client)> {
    let test = std::env::current_exe().unwrap();
    let program = test.parent()?.parent()?.join("supervise");
    if !program.is_file() {
        eprintln!("skipped: {} is not built", program.display());
        return None;
    }
    let socket = folder.join("supervise.sock");
    let mut command = Command::new(program);
    let process = command.arg("--socket").arg(&socket).stderr(Stdio::null()).spawn().unwrap();
    let process = Supervisor(process);
    let deadline = Instant::now() + LIMIT;
    loop {
        match Client::connect(&socket) {
            Ok(client) => return Some((process, client)),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn config(folder: &Path, script: &str) -> VmConfig {
    let vmm = folder.join("vmm");
    // Whole and executable at once: what is open for writing can't be run.
    let new = folder.join("new");
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, &vmm).unwrap();
    let path = |name: &str| -> PathBuf { folder.join(name) };
    VmConfig {
        state: path("state"),
        runtime: path("run"),
        vmm,
        kernel: path("vmlinux"),
        initramfs: path("initramfs"),
        cache: path("cache"),
        disk_boot: None,
        start_time_max: VmConfig::START_TIME_MAX,
    }
}

#[test]
fn it_ends_well_or_says_in_words_how_it_ended_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_process, client)) = supervisor(folder.path()) else { return };
    let (log, told) = (folder.path().join("log"), folder.path().join("told"));
    let run = |script: &str, time_max| {
        let config = config(folder.path(), script);
        let rehearsed = rehearse(&config, &client, &log, time_max);
        assert!(client.list().unwrap().is_empty());
        rehearsed.map_err(|error| error.to_string())
    };
    let time = run(&format!("echo \"$@\" > {}", told.display()), LIMIT).unwrap();
    assert!(time < LIMIT);
    let told = fs::read_to_string(told).unwrap();
    let kernel = folder.path().join("vmlinux");
    assert!(told.starts_with(&format!("run --kernel {} --initramfs ", kernel.display())), "{told}");
    let error = run("echo the kernel panicked; exit 11", LIMIT).unwrap_err();
    assert!(error.contains("ended with status 11: the kernel panicked"), "{error}");
    let begin = Instant::now();
    let error = run("sleep 60", Duration::from_secs(1)).unwrap_err();
    assert!(error.ends_with("did not answer within 1 s"), "{error}");
    assert!(begin.elapsed() < LIMIT);
}
