//! Saving a device that a guest uses, and going on in another process.

use std::fs;

use flist_view::filesystem::Errno;
use serde_json::json;

use super::image::Image;
use super::*;
use crate::{Device, DeviceError};

fn error(result: Result<(), DeviceError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_the_guest_knows_is_known_after_a_restore() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let sub = client.mkdir(1, "sub").unwrap().ino;
    let file = client.touch(sub, "file").unwrap().ino;
    client.write(file, 0, b"before").unwrap();
    client.lookup(sub, "file").unwrap();
    client.rename((1, "sub"), (1, "moved"), 0).unwrap();
    let state = client.device.save().unwrap();
    drop(client);
    let mut client = host(directory.path());
    assert_eq!(client.read(file, 0, 100), Err(Errno::STALE));
    client.device.restore(state).unwrap();
    assert_eq!(client.read(file, 0, 100).unwrap(), b"before");
    client.touch(sub, "new").unwrap();
    client.forget(file, 1);
    assert!(client.getattr(file).is_ok(), "it was told of twice");
    client.forget(file, 1);
    assert_eq!(client.getattr(file), Err(Errno::STALE));
}

#[test]
fn a_file_without_a_name_cannot_be_saved() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    client.touch(1, "file").unwrap();
    client.unlink(1, "file").unwrap();
    let error = client.device.save().unwrap_err().to_string();
    assert!(error.contains("deleted"), "{error}");
}

#[test]
fn an_image_needs_no_state_but_to_be_the_same() {
    let image = Image::default().file("file", "contents");
    let mut client = Client::new(image.view());
    let file = client.walk("file").unwrap().ino;
    let state = client.device.save().unwrap();
    let mut client = Client::new(image.view());
    client.device.restore(state).unwrap();
    assert_eq!(client.read(file, 0, 100).unwrap(), b"contents");
    for state in [json!("00"), json!(null), json!({})] {
        assert!(error(client.device.restore(state)).contains("image"));
    }
}

#[test]
fn a_directory_that_changed_or_a_state_that_lies_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    let state = client.device.save().unwrap();
    fs::remove_file(directory.path().join("file")).unwrap();
    fs::write(directory.path().join("file"), "another").unwrap();
    let mut client = host(directory.path());
    assert!(error(client.device.restore(state)).contains("file"));
    let node = |ino: u64, parent: u64, name: &str| json!({"ino": ino, "generation": 0, "parent": parent, "name": name.as_bytes(), "lookups": 1});
    for nodes in [
        json!([node(file, 1, "../x")]),
        json!([node(file, 1, "..")]),
        json!([node(7, 8, "a"), node(8, 7, "b")]),
        json!([node(7, 1, "missing")]),
        json!("text"),
        json!(null),
    ] {
        error(client.device.restore(json!({ "nodes": nodes })));
    }
    error(client.device.restore(json!({"nodes": [], "more": 1})));
    client.device.restore(json!({"nodes": []})).unwrap();
}
