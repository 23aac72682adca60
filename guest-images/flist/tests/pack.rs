//! `flist pack` as a person meets it: exit codes, messages, and what is left behind when it fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::FLIST;
use rustix::process::{Pid, Signal, kill_process};

/// A folder with a tree to pack and room for results.
fn folder_with_tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tree")).unwrap();
    fs::write(folder.path().join("tree/file"), b"text").unwrap();
    folder
}

fn pack(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(FLIST).arg("pack").args(arguments).current_dir(folder).output().unwrap()
}

/// Names in a folder, without the tree itself.
fn left_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "tree");
    names.sort();
    names
}

#[track_caller]
fn assert_failed(output: &Output, code: i32, says: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.contains(says), "{errors}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_tree_that_is_not_there_is_not_found() {
    let folder = folder_with_tree();
    let output = pack(folder.path(), &["absent", "-o", "x.fl", "--store", "dir://blocks"]);
    assert_failed(&output, 3, "absent");
    assert_eq!(left_in(folder.path()), Vec::<String>::new());
}

#[test]
fn a_store_inside_the_tree_is_refused() {
    let folder = folder_with_tree();
    let store = format!("dir://{}", folder.path().join("tree/blocks").display());
    let output = pack(folder.path(), &["tree", "-o", "x.fl", "--store", &store]);
    assert_failed(&output, 1, "inside the directory that is packed");
    assert_eq!(left_in(folder.path()), Vec::<String>::new());

    let excluded = ["tree", "-o", "x.fl", "--store", &store, "--exclude", "blocks"];
    assert!(pack(folder.path(), &excluded).status.success());
}

#[test]
fn shards_that_leave_a_gap_are_refused_before_work_begins() {
    let folder = folder_with_tree();
    let store = format!("00-7f=dir://{}", folder.path().join("blocks").display());
    let output = pack(folder.path(), &["tree", "-o", "x.fl", "--store", &store]);
    assert_failed(&output, 2, "begin with 80");
    assert!(!folder.path().join("x.fl").exists());
}

#[test]
fn no_message_shows_a_password() {
    let folder = folder_with_tree();
    for store in [
        "zdb://user:hunter2@127.0.0.1:1/blocks",
        "zdb://user:hunter2@127.0.0.1:port/blocks",
        "s3://KEY:hunter2@127.0.0.1/no-port",
        "ftp://user:hunter2@host/",
        "zz-00=s3://KEY:hunter2@127.0.0.1:1/bucket",
    ] {
        let output = pack(folder.path(), &["tree", "-o", "x.fl", "--store", store]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !errors.contains("hunter2"), "{errors}");
        assert!(!folder.path().join("x.fl").exists());
    }
}

#[test]
fn an_interrupt_leaves_no_image() {
    let folder = folder_with_tree();
    // Sparse: packing it takes long, making it does not.
    let file = fs::File::create(folder.path().join("tree/large")).unwrap();
    file.set_len(64 << 30).unwrap();
    let store = format!("dir://{}", folder.path().join("blocks").display());
    let mut command = Command::new(FLIST);
    command.args(["pack", "tree", "-o", "x.fl", "--store", &store]).current_dir(folder.path());
    let child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while !folder.path().join("blocks").exists() {
        assert!(begin.elapsed() < Duration::from_secs(30), "packing does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(Signal::INT.as_raw()), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "flist: interrupted\n");
    assert_eq!(left_in(folder.path()), ["blocks"]);
}

#[test]
fn a_log_that_goes_to_no_terminal_has_no_colours() {
    let folder = folder_with_tree();
    let store = format!("dir://{}", folder.path().join("blocks").display());
    let mut command = Command::new(FLIST);
    command.args(["pack", "tree", "-o", "x.fl", "--store", &store]).current_dir(folder.path());
    let output = command.env("FLIST_LOG", "flist=debug").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("listed") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn the_same_tree_gives_the_same_image() {
    let folder = folder_with_tree();
    let store = format!("dir://{}", folder.path().join("blocks").display());
    for image in ["a.fl", "b.fl"] {
        let output = pack(folder.path(), &["tree", "-o", image, "--store", &store, "--tag", "k=v"]);
        assert!(output.status.success());
    }
    let read = |name| fs::read(folder.path().join(name)).unwrap();
    assert!(read("a.fl") == read("b.fl"));
}
