//! The jail, tried from within: this program runs itself, with a scenario to play in a jail, and
//! looks at what becomes of it.
//!
//! It has no test harness, since a jail is closed around a process with one thread. Words on its
//! command line choose tests by their names, as usual.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod guest;
mod scenarios;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

/// Names the scenario that this process plays, with words for it.
const SCENARIO: &str = "JAIL_SCENARIO";
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_forbidden_call_ends_the_process_and_names_the_thread", forbidden_calls),
    ("a_vcpu_that_the_guest_has_taken_over_ends_the_process", vcpu_is_taken_over),
    ("nothing_of_the_host_is_in_reach", nothing_in_reach),
    ("a_shared_directory_is_all_there_is_and_means_nothing", shared_directories),
    ("descriptors_of_others_are_closed", foreign_descriptors),
    ("the_warden_ends_as_the_vm_did", ends),
    ("signals_are_passed_on", signals),
    ("a_vm_dies_with_its_warden", death_of_the_warden),
    ("a_vm_runs_in_its_jail", whole_vm),
];

fn main() -> ExitCode {
    if let Ok(words) = std::env::var(SCENARIO) {
        return scenarios::play(&words);
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, test) in TESTS {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn scenario(words: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SCENARIO, words).stdin(Stdio::null());
    command
}

fn play(words: &str) -> (Output, String) {
    let output = scenario(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, errors)
}

fn succeed(words: &str) {
    let (output, errors) = play(words);
    assert_eq!(output.status.code(), Some(0), "{words}: {errors}");
}

fn forbidden_calls() {
    let threads = [
        "vcpu0",
        "vcpu254",
        "disk.root",
        "disk.root.1",
        "net.net0",
        "fs.root",
        "devices",
        "api",
        "hotplug",
        "signals",
        "input",
        "main",
    ];
    for thread in threads {
        for shares in ["", "shares"] {
            let (output, errors) = play(&format!("forbidden {thread} {shares}"));
            assert_eq!(output.status.code(), Some(13), "{thread}: {errors}");
            // The kernel keeps 15 bytes of a name; the first thread has the process's.
            let name = if thread == "main" { "jail" } else { thread };
            let line = format!("vmm: thread {name}");
            let rest = ": system call 41 (socket) is forbidden";
            assert!(errors.contains(&line) && errors.contains(rest), "{thread}: {errors}");
            assert!(!errors.contains("still here"), "{thread}: {errors}");
        }
    }
    // Arguments count.
    for what in ["mmap-exec", "tiocsti", "kill", "clone", "ring"] {
        let (output, errors) = play(&format!("forbidden-arguments {what}"));
        assert_eq!(output.status.code(), Some(13), "{what}: {errors}");
        assert!(errors.contains("is forbidden") && !errors.contains("still here"), "{errors}");
    }
    let (output, errors) = play("unknown-thread");
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("no filter for a thread called \"tokio\""), "{errors}");
}

fn vcpu_is_taken_over() {
    let (output, errors) = play("vcpu");
    if errors.contains("skipped") {
        return print!("{errors}");
    }
    assert_eq!(output.status.code(), Some(13), "{errors}");
    assert!(errors.contains("thread vcpu0: system call 59 (execve) is forbidden"), "{errors}");
}

fn nothing_in_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    succeed(&format!("reach {} {}", listener.local_addr().unwrap(), std::process::id()));
}

fn shared_directories() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["written", "read"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("file"), "from outside").unwrap();
    }
    std::fs::write(folder.path().join("secret"), "of the host").unwrap();
    succeed(&format!("shares {}", folder.path().display()));
    let written = std::fs::read(folder.path().join("written/new")).unwrap();
    assert_eq!(written, b"from inside");
}

fn foreign_descriptors() {
    succeed("descriptors");
}

fn ends() {
    for code in [0, 10, 11, 12, 13] {
        let (output, errors) = play(&format!("exit {code}"));
        assert_eq!(output.status.code(), Some(code), "{errors}");
    }
    for (how, signal) in [("abort", libc::SIGABRT), ("segv", libc::SIGSEGV)] {
        let (output, errors) = play(&format!("exit {how}"));
        assert_eq!(output.status.signal(), Some(signal), "{how}: {errors}");
    }
}

fn signals() {
    let mut child = scenario("wait").stdout(Stdio::piped()).spawn().unwrap();
    first_line(&mut child);
    send(child.id(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(12));
}

fn death_of_the_warden() {
    let mut child = scenario("wait").stdout(Stdio::piped()).spawn().unwrap();
    let vm = first_line(&mut child);
    let process = Path::new("/proc").join(&vm);
    assert!(process.exists() && vm != child.id().to_string(), "{vm}");
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    // A zombie until its new parent notices.
    let is_alive =
        || std::fs::read_to_string(process.join("status")).is_ok_and(|s| !s.contains("State:\tZ"));
    while is_alive() {
        assert!(start.elapsed() < PATIENCE, "process {vm} outlives its warden");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn whole_vm() {
    for (how, code) in [("off", 0), ("crash", 11)] {
        let folder = tempfile::tempdir().unwrap();
        let (output, errors) = play(&format!("vm {how} {}", folder.path().display()));
        if errors.contains("skipped") {
            return print!("{errors}");
        }
        assert_eq!(output.status.code(), Some(code), "{how}: {errors}");
        assert!(!folder.path().join("api").exists(), "the socket's file stayed");
        assert!(!folder.path().join("vsock").exists(), "the socket's file stayed");
        let said = std::fs::read_to_string(folder.path().join("serial")).unwrap();
        assert_eq!(said, "u");
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn send(process: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
