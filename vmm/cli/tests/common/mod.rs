//! Runs the program, and compares what it says with files.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program, with nothing of our own environment that changes its words.
pub(crate) fn vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["COLUMNS", "VMM_LOG", "NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
}

/// Exit code, standard output, standard error.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    said(&vmm(arguments).output().unwrap())
}

pub(crate) fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Compares `text` with a file of `golden/`; with `UPDATE_GOLDEN=1`, writes it there.
#[allow(dead_code, reason = "not every test has golden files")]
pub(crate) fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; UPDATE_GOLDEN=1 writes it anew");
}
