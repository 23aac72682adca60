//! Programs under a supervisor that is a process: how they start, crash, stop, and what they are given.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;

use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{LIMIT, Running, children, fast, is_alive, until};
use supervise::client::News;
use supervise::{Log, Outcome, Policy, Program, State};

const SLEEP: &str = "exec sleep 1000";

#[test]
fn to_start_twice_is_to_start_once() {
    let run = Running::start();
    let program = run.script("a", SLEEP);
    let first = run.client.start(&program, &[]).unwrap();
    assert_eq!((first.state, first.restarts), (State::Running, 0));
    assert_eq!(run.client.start(&program, &[]).unwrap().pid, first.pid);
    let other = run.client.start(&run.script("a", "exec sleep 1001"), &[]).unwrap_err();
    assert!(other.is_conflict(), "{other}");
    let stopped = run.client.stop("a", LIMIT).unwrap().unwrap();
    assert_eq!(stopped.last_exit.unwrap().outcome, Outcome::Signal(15));
    assert!(!is_alive(first.pid.unwrap()));
    assert_eq!(run.client.stop("a", LIMIT).unwrap(), None);
    assert_eq!(run.client.list().unwrap(), []);
    assert_ne!(run.client.start(&program, &[]).unwrap().pid, first.pid);
}

#[test]
fn what_cannot_be_started_leaves_nothing() {
    let run = Running::start();
    let missing = run.client.start(&Program::new("a", ["/no/such"]), &[]).unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    let namespace = Program {
        network_namespace: Some("/no/namespace".into()),
        ..Program::new("a", ["/bin/true"])
    };
    let missing = run.client.start(&namespace, &[]).unwrap_err().to_string();
    assert!(missing.contains("/no/namespace"), "{missing}");
    let invalid = run.client.start(&Program::new("../a", ["/bin/true"]), &[]).unwrap_err();
    assert!(invalid.to_string().contains("name '../a'"), "{invalid}");
    assert_eq!(run.client.list().unwrap(), []);
}

#[test]
fn who_is_spared_when_memory_runs_out_is_said() {
    let run = Running::start();
    let before = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    for (name, score) in [("usual", 0), ("first", 500)] {
        // To end sooner, nobody needs any right.
        let program = Program { oom_score_adj: score, ..run.script(name, SLEEP) };
        let pid = run.client.start(&program, &[]).unwrap().pid.unwrap();
        let now = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        let expected = if score == 0 { before.trim().to_owned() } else { score.to_string() };
        assert_eq!(now.trim(), expected, "{name}");
    }
}

#[test]
fn a_killed_program_is_started_again() {
    let run = Running::start();
    let mut program = run.script("a", SLEEP);
    program.policy = fast(Policy::service());
    let first = run.client.start(&program, &[]).unwrap().pid.unwrap();
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("it runs again", || run.status("a").pid.is_some_and(|pid| pid != first));
    let status = run.status("a");
    assert_eq!((status.restarts, status.crashes), (1, 1));
    assert_eq!(status.last_exit.unwrap().outcome, Outcome::Signal(9));
}

#[test]
fn the_fourth_crash_is_the_last_and_a_clean_end_is_none() {
    let run = Running::start();
    let mut crashing = run.script("crashing", "echo x >> runs; exit 11");
    crashing.policy = fast(Policy::machine(&[0], &[2]));
    run.client.start(&crashing, &[]).unwrap();
    let status = run.client.wait("crashing", LIMIT).unwrap();
    assert_eq!((status.state, status.crashes, status.restarts), (State::GivenUp, 4, 3));
    assert_eq!(status.last_exit.unwrap().outcome, Outcome::Status(11));
    assert_eq!(std::fs::read_to_string(run.path("runs")).unwrap(), "x\n".repeat(4));

    let mut clean = run.script("clean", "exit 0");
    clean.policy = fast(Policy::machine(&[0], &[2]));
    run.client.start(&clean, &[]).unwrap();
    until("it ran often", || run.status("clean").restarts > 8);
    assert_eq!(run.status("clean").crashes, 0);

    let mut wrong = run.script("wrong", "exit 2");
    wrong.policy = fast(Policy::machine(&[0], &[2]));
    run.client.start(&wrong, &[]).unwrap();
    let status = run.client.wait("wrong", LIMIT).unwrap();
    assert_eq!((status.state, status.restarts), (State::Ended, 0));
    // One that is over starts afresh.
    let again = run.client.start(&wrong, &[]).unwrap();
    assert_eq!(again.state, State::Running);
}

#[test]
fn a_restart_that_cannot_be_tried_gives_up() {
    let run = Running::start();
    let path = run.path("program");
    std::fs::copy("/bin/sleep", &path).unwrap();
    let mut program = Program::new("a", [path.to_str().unwrap(), "1000"]);
    program.policy = fast(Policy::machine(&[0], &[]));
    let pid = run.client.start(&program, &[]).unwrap().pid.unwrap();
    std::fs::remove_file(&path).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let status = run.client.wait("a", LIMIT).unwrap();
    assert_eq!(status.state, State::GivenUp);
    assert!(matches!(status.last_exit.unwrap().outcome, Outcome::NotStarted(_)));
}

#[test]
fn a_stop_waits_for_a_program_that_ends_and_kills_one_that_does_not() {
    let run = Running::start();
    let good = "trap 'echo ending; sleep 0.2; echo ended; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    run.client.start(&run.script("good", good), &[]).unwrap();
    until("it is ready", || run.log("good").contains("ready"));
    let stopped = run.client.stop("good", LIMIT).unwrap().unwrap();
    assert_eq!(stopped.last_exit.unwrap().outcome, Outcome::Status(0));
    until("its last words are logged", || run.log("good").contains("ended"));

    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    run.client.start(&run.script("deaf", deaf), &[]).unwrap();
    until("it is ready", || run.log("deaf").contains("ready"));
    let began = Instant::now();
    let stopped = run.client.stop("deaf", Duration::from_millis(300)).unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(stopped.last_exit.unwrap().outcome, Outcome::Signal(9));

    run.client.start(&run.script("deaf", deaf), &[]).unwrap();
    let began = Instant::now();
    run.client.stop("deaf", Duration::ZERO).unwrap().unwrap();
    assert!(began.elapsed() < LIMIT / 2);
}

#[test]
fn nothing_of_a_run_is_left_behind() {
    let run = Running::start();
    let mut program = run.script("a", "sleep 1000 & echo $! > helper; echo ready; wait");
    program.policy = fast(Policy::service());
    let first = run.client.start(&program, &[]).unwrap().pid.unwrap();
    until("it is ready", || run.log("a").contains("ready"));
    let helper = || std::fs::read_to_string(run.path("helper")).unwrap().trim().parse().unwrap();
    let old: u32 = helper();
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("it runs again", || run.status("a").pid.is_some_and(|pid| pid != first));
    assert!(!is_alive(old), "two runs overlap");
    until("its helper runs", || helper() != old);
    let new = helper();
    run.client.stop("a", LIMIT).unwrap();
    assert!(!is_alive(new));
    assert_eq!(children(run.process.id()), []);
}

#[test]
fn orphans_are_reaped() {
    let run = Running::start();
    // Helpers in sessions of their own, whose parents end at once.
    let script = "for n in 1 2 3 4 5; do (setsid sleep 0.5 &); done; echo ready; exec sleep 1000";
    let pid = run.client.start(&run.script("a", script), &[]).unwrap().pid.unwrap();
    until("they run", || run.log("a").contains("ready"));
    until("they are the supervisor's", || children(run.process.id()).len() == 6);
    until("only the program is left", || {
        children(run.process.id()).iter().all(|(child, state)| *child == pid && *state != 'Z')
    });
}

#[test]
fn a_program_gets_its_descriptors_at_every_start_and_nothing_else() {
    let run = Running::start();
    let mut file = tempfile::tempfile().unwrap();
    let mut program = run.script("a", "echo run >&3; ls /proc/self/fd; pwd; env; exit 1");
    program.policy = fast(Policy::machine(&[], &[]));
    program.env.insert("COLOUR".into(), "blue".into());
    let null = std::fs::File::open("/dev/null").unwrap();
    run.client.start(&program, &[file.as_fd(), null.as_fd()]).unwrap();
    assert_eq!(run.client.wait("a", LIMIT).unwrap().state, State::GivenUp);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "run\n".repeat(4));
    until("all is logged", || run.log("a").matches("COLOUR=blue").count() == 4);
    let log = run.log("a");
    // The last is the folder that `ls` reads.
    let numbers: Vec<&str> = log.lines().take(6).collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4", "5"]);
    assert!(log.contains(run.folder.path().to_str().unwrap()));
    assert!(!log.contains("CARGO"), "{log}");
}

#[test]
fn logs_rotate_and_a_log_that_cannot_be_written_blocks_nobody() {
    let run = Running::start();
    let mut program =
        run.script("a", "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done");
    let log = Log { path: run.path("a.log"), size_max: 8 << 10, kept: 2 };
    program.log = Some(log);
    run.client.start(&program, &[]).unwrap();
    assert_eq!(run.client.wait("a", LIMIT).unwrap().state, State::Ended);
    until("all is logged", || run.log("a").contains("line 3999"));
    for name in ["a.log", "a.log.1", "a.log.2"] {
        let text = std::fs::read_to_string(run.path(name)).unwrap();
        assert!(text.len() <= 8 << 10 && text.starts_with("line ") && text.ends_with('\n'));
    }
    assert!(!run.path("a.log.3").exists());

    let mut program = run.script("b", "head -c 20000000 /dev/zero; echo done > done");
    program.log = Some(Log { path: run.path("no/b.log"), size_max: 8 << 10, kept: 2 });
    run.client.start(&program, &[]).unwrap();
    run.client.wait("b", LIMIT).unwrap();
    assert!(run.path("done").exists());
    until("it is counted", || run.status("b").log_lost_bytes == 20_000_000);
}

#[test]
fn a_watch_tells_what_happens() {
    let run = Running::start();
    run.client.start(&run.script("before", SLEEP), &[]).unwrap();
    let mut watch = run.client.watch().unwrap();
    assert_eq!(watch.statuses().len(), 1);
    run.client.start(&run.script("a", "exit 3"), &[]).unwrap();
    run.client.wait("a", LIMIT).unwrap();
    run.client.stop("a", LIMIT).unwrap();
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(News::Removed(_))) {
        seen.push(watch.next(LIMIT).unwrap().unwrap());
    }
    let states: Vec<State> = seen
        .iter()
        .filter_map(|news| match news {
            News::Changed(status) => Some(status.state),
            News::Removed(_) => None,
        })
        .collect();
    assert_eq!(states, [State::Running, State::Ended, State::Stopping]);
    assert_eq!(seen.last(), Some(&News::Removed("a".into())));
    assert_eq!(watch.next(Duration::from_millis(20)).unwrap(), None);
}

#[test]
fn a_program_runs_in_its_network_namespace() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: namespaces need root");
        return;
    }
    let mut holder =
        Command::new("unshare").args(["-n", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    until("it has a namespace", || std::fs::read_link(&path).is_ok_and(|link| link != own));
    let there = std::fs::read_link(&path).unwrap();
    let run = Running::start();
    let mut program = run.script("a", "readlink /proc/self/ns/net");
    program.network_namespace = Some(path.into());
    run.client.start(&program, &[]).unwrap();
    run.client.wait("a", LIMIT).unwrap();
    until("it is logged", || run.log("a").trim() == there.to_str().unwrap());
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn with_a_cgroup_even_those_that_hide_are_ended() {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let root = roots.into_iter().find(|root| {
        std::path::Path::new(root).join("cgroup.controllers").exists()
            && rustix::process::geteuid().is_root()
    });
    let Some(root) = root else {
        eprintln!("skipped: no writable cgroup of version 2");
        return;
    };
    let group = std::path::Path::new(root).join(format!("supervise-test-{}", std::process::id()));
    if std::fs::create_dir(&group).is_err() {
        eprintln!("skipped: {root} is read-only");
        return;
    }
    let run = Running::start_with(&["--cgroup", group.to_str().unwrap()]);
    let script = "setsid sh -c 'echo $$ > hidden; exec sleep 1000' & echo ready; exec sleep 1000";
    let status = run.client.start(&run.script("a", script), &[]).unwrap();
    assert_eq!(status.cgroup, Some(group.join("a")));
    until("it hides", || {
        std::fs::read_to_string(run.path("hidden")).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let hidden = std::fs::read_to_string(run.path("hidden")).unwrap().trim().parse().unwrap();
    run.client.stop("a", LIMIT).unwrap();
    assert!(!is_alive(hidden));
    assert!(!group.join("a").exists());
    drop(run);
    std::fs::remove_dir(&group).unwrap();
}
