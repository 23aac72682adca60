//! What the command says: help, errors, hints, exit codes, descriptions.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{golden, run, said, vmm};

#[test]
fn help_is_as_reviewed() {
    for name in [
        "", "run", "restore", "check", "ps", "status", "console", "pause", "shutdown", "balloon",
        "disk", "disk add", "net add", "snapshot",
    ] {
        let arguments: Vec<&str> = name.split_whitespace().chain(["--help"]).collect();
        let (code, out, err) = run(&arguments);
        assert_eq!((code, err.as_str()), (0, ""), "{name}");
        let file = if name.is_empty() { "vmm" } else { name };
        golden(&format!("help-{}.txt", file.replace(' ', "-")), &out);
    }
}

/// Each line of the file is a command and what it says on standard error.
#[test]
fn errors_are_as_reviewed() {
    let kernel = ["run", "--kernel", "/vmlinux"];
    let cases: &[&[&str]] = &[
        &["run"],
        &["run", "--kernel", "/vmlinux", "--cpus", "256"],
        &["run", "--kernel", "/vmlinux", "--cpus", "two"],
        &["run", "--kernel", "/vmlinux", "--cpus", "2,template=baseline-v9"],
        &["run", "--kernel", "/vmlinux", "--cpus", "70000"],
        &["run", "--kernel", "/vmlinux", "--memory", "512"],
        &["run", "--kernel", "/vmlinux", "--memory", "1.5G"],
        &[
            "run",
            "--kernel",
            "/vmlinux",
            "--disk",
            "a.img",
            "--disk",
            "b.img,serial=123456789012345678901",
        ],
        &["run", "--kernel", "/vmlinux", "--disk", "a.img,read-only"],
        &["run", "--kernel", "/vmlinux", "--disk", "a.img,"],
        &["run", "--kernel", "/vmlinux", "--disk", "a.img,rate=fast"],
        &["run", "--kernel", "/vmlinux", "--net", "tap0,mac=no"],
        &["run", "--kernel", "/vmlinux", "--fs", "tag=root,flist=a.fl"],
        &["run", "--kernel", "/vmlinux", "--console", "stdout"],
        &["run", "--kernel", "/vmlinux", "--console", "stdio", "--serial", "stdio"],
        &["run", "--kernel", "/vmlinux", "--vsock", "cid=2,socket=/run/v"],
        &["run", "--kernel", "/vmlinux", "--on-reset", "restart"],
        &["run", "--kernel", "/vmlinux", "--jail", "uid=0"],
        &["run", "--config", "/nonexistent/vm.json"],
        &["status", "/nonexistent/vm.sock"],
        &["disk", "remove", "/nonexistent/vm.sock", "a/b"],
        &["balloon", "/nonexistent/vm.sock", "1K"],
        &["balloon", "/nonexistent/vm.sock", "much"],
    ];
    let mut text = String::new();
    for arguments in cases {
        let (code, out, err) = run(arguments);
        assert_eq!(out, "", "{arguments:?}");
        let shown = arguments.join(" ").replace(&kernel.join(" "), "run …");
        text.push_str(&format!("$ vmm {shown}\n{err}[{code}]\n\n"));
    }
    golden("errors.txt", &text);
}

#[test]
fn a_description_says_what_the_flags_said() {
    let flags = [
        "run",
        "--kernel",
        "/boot/vmlinux",
        "--cpus",
        "2",
        "--memory",
        "1G,hugepages=2M",
        "--disk",
        "a,,b.img,readonly,serial=s",
        "--net",
        "tap0,queues=2",
        "--fs",
        "tag=d,dir=/srv",
        "--vsock",
        "cid=3,socket=/run/v",
        "--rng",
        "--balloon",
        "--console",
        "file=/log",
        "--watchdog",
        "30",
        "--api-socket",
        "/run/a.sock",
        "--no-jail",
        "--print-config",
    ];
    let (code, json, err) = run(&flags);
    assert_eq!((code, err.as_str()), (0, ""));
    golden("print-config.json", &json);
    // The description alone says the same again; a flag changes what it names.
    let (code, again, err) = with_config(&json, &["run", "--config", "-", "--print-config"]);
    assert_eq!((code, again.as_str(), err.as_str()), (0, json.as_str(), ""));
    let larger = ["run", "--config", "-", "--memory", "2G", "--print-config"];
    let (_, changed, _) = with_config(&json, &larger);
    assert_eq!(changed, json.replace("\"1G\"", "\"2G\""));
}

#[test]
fn a_wrong_description_is_wrong_at_a_place() {
    let run = ["run", "--config", "-"];
    let (code, out, err) = with_config("{\"version\": 1, \"memroy\": {}}", &run);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.starts_with("vmm: standard input: memroy: unknown field `memroy`"), "{err}");
    assert!(err.ends_with("hint: did you mean `memory`?\n"), "{err}");
    let (code, _, err) = with_config("{\"version\": 7}", &run);
    assert_eq!(code, 2);
    assert_eq!(err, "vmm: standard input: version 7: this program reads version 1\n");
}

#[test]
fn check_says_whether_vms_can_run() {
    let (code, out, err) = run(&["check", "--json"]);
    assert_eq!(err, "");
    let findings: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let missing = findings.iter().any(|finding| finding["verdict"] == "missing");
    assert_eq!(code, i32::from(missing));
    assert_eq!(findings[0]["what"], "kvm");
    let (again, text, _) = run(&["check"]);
    assert_eq!(again, code);
    assert!(text.lines().count() >= findings.len() && !text.contains('\x1b'), "{text}");
}

fn with_config(json: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = vmm(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(json.as_bytes()).unwrap();
    said(&child.wait_with_output().unwrap())
}
