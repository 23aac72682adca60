//! What the program says of itself, and of what it can't use; whose start a node waits for must hear why.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::process::Command;

/// Exit code, and both outputs.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_guestio")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_names_what_it_carries() {
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(out.contains("console") && out.contains("logs"), "{out}");
}

#[test]
fn what_it_cannot_use_is_named() {
    let (code, _, errors) = run(&["nonsense"]);
    assert_eq!(code, 2);
    assert!(errors.contains("nonsense"), "{errors}");
    let (code, _, errors) = run(&["logs", "--check", "--config", "/there/is/no.json"]);
    assert_eq!(code, 1);
    assert!(errors.contains("/there/is/no.json"), "{errors}");
}
