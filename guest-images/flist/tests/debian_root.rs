//! A Debian root round-trips: as a directory and as an OCI layout, mounted and unpacked, with every
//! byte, mode, owner, time, link and extended attribute.
//!
//! The root is made by `ci/debian-root`, whose path comes in `ZERO_OS_DEBIAN_ROOT`; without it the
//! tests say so and pass. They need root, because the tree holds devices and other owners' files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mount, can_mount, differences, flist};
use sha2::{Digest, Sha256};

/// The Debian root, if tests on it can run here.
fn debian_root() -> Option<PathBuf> {
    let root = std::env::var_os("ZERO_OS_DEBIAN_ROOT").map(PathBuf::from);
    if root.is_none() {
        eprintln!("skipped: ZERO_OS_DEBIAN_ROOT does not name a Debian root");
    }
    root.filter(|_| can_mount())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn assert_same(expected: &Path, found: &Path) {
    let differences = differences(expected, found);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_packed_directory_is_mounted_and_unpacked_as_it_was() {
    let Some(root) = debian_root() else { return };
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("debian.fl");
    let store = format!("dir://{}", folder.path().join("blocks").display());
    flist(&["pack", text(&root), "-o", text(&image), "--store", &store]);
    {
        let at = folder.path().join("mnt");
        let cache = folder.path().join("cache");
        let _mount = Mount::new(&[text(&image), "--cache", text(&cache)], &at);
        assert_same(&root, &at);
    }
    let unpacked = folder.path().join("unpacked");
    flist(&["unpack", text(&image), text(&unpacked)]);
    assert_same(&root, &unpacked);
}

#[test]
fn an_oci_layout_of_the_same_root_gives_the_same_tree() {
    let Some(root) = debian_root() else { return };
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    oci_layout(&root, &layout);
    let image = folder.path().join("debian.fl");
    let store = format!("dir://{}", folder.path().join("blocks").display());
    flist(&["from-oci", text(&layout), "-o", text(&image), "--store", &store]);
    let at = folder.path().join("mnt");
    let cache = folder.path().join("cache");
    let _mount = Mount::new(&[text(&image), "--cache", text(&cache)], &at);
    let mut differences = differences(&root, &at);
    // The image's configuration becomes a file of its own.
    differences.retain(|line| !line.starts_with(".startup.toml: "));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// An OCI image layout with `root` as its only layer, as `tar` and `gzip` make it.
fn oci_layout(root: &Path, layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let tar = layout.join("layer.tar");
    run(Command::new("tar")
        .args(["--create", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner"])
        .args(["--pax-option=delete=atime,delete=ctime", "--sort=name", "--file"])
        .args([&tar, Path::new("--directory"), root, Path::new(".")]));
    let diff_id = sha256(&fs::read(&tar).unwrap());
    run(Command::new("gzip").arg("-1").arg(&tar));
    let layer = put_blob(&blobs, &fs::read(layout.join("layer.tar.gz")).unwrap());
    fs::remove_file(layout.join("layer.tar.gz")).unwrap();
    let config = put_blob(
        &blobs,
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/sh"],"Env":["A=b"]}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
        )
        .as_bytes(),
    );
    let manifest = put_blob(
        &blobs,
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",{layer}}}]}}"#
        )
        .as_bytes(),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
        {manifest},"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#
    );
    fs::write(layout.join("index.json"), index).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Stores a blob and returns the members of its descriptor.
fn put_blob(blobs: &Path, bytes: &[u8]) -> String {
    let digest = sha256(bytes);
    fs::write(blobs.join(&digest), bytes).unwrap();
    format!(r#""digest":"sha256:{digest}","size":{}"#, bytes.len())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
