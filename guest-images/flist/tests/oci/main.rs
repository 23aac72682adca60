//! OCI images, made here and hostile where it matters, become the trees that they describe; and the
//! hub takes what came of them.

#![expect(clippy::unwrap_used, reason = "in a test, the panic is the message")]

mod convert;
mod hostile;
mod hub;
mod image;
mod registry;
mod server;

use std::path::Path;

use flist::oci::{Converted, Limits, OciError, Options, Platform, convert as convert_image};
use flist::pack::Contents;
use flist::progress::Quiet;
use flist::tree::{Node, printable};
use std::error::Error;
use std::fmt::Write;
use std::io::Read;

/// Options whose temporary files go to the system's folder for them.
fn options() -> Options {
    Options {
        platform: Platform::default(),
        image: None,
        spool_directory: std::env::temp_dir(),
        limits: Limits::default(),
        registry: flist::oci::registry::RegistryOptions::default(),
    }
}

fn convert(source: &Path) -> Result<Converted, OciError> {
    convert_image(source.to_str().unwrap(), &options(), &Quiet)
}

/// An error with its causes, as the command prints them.
fn chain(error: &OciError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        write!(text, ": {source}").unwrap();
        cause = source.source();
    }
    text
}

/// One line for each entry: path, mode, owner, time, links, what it is, attributes.
fn listing(converted: &Converted) -> Vec<String> {
    let tree = &converted.tree;
    let counts = tree.link_counts();
    let line = |entry: &flist::tree::Entry| {
        let inode = tree.inode(entry.id);
        let metadata = &inode.metadata;
        let node = match &inode.node {
            Node::Directory(_) => "dir".to_owned(),
            Node::File(file) => {
                let mut bytes = Vec::new();
                converted.contents.open(entry.id, 0).unwrap().read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len() as u64, file.size);
                format!("file x{} {:?}", counts[entry.id.index()], printable(&bytes))
            }
            Node::Symlink(target) => format!("-> {}", printable(target)),
            Node::CharacterDevice(number) => format!("char {}:{}", number.major, number.minor),
            Node::BlockDevice(number) => format!("block {}:{}", number.major, number.minor),
            Node::Fifo => "fifo".to_owned(),
            Node::Socket => "socket".to_owned(),
        };
        let mut text = format!(
            "/{} {:o} {}:{} {}.{:09} {node}",
            printable(&entry.path),
            metadata.permissions,
            metadata.uid,
            metadata.gid,
            metadata.mtime.seconds,
            metadata.mtime.nanoseconds
        );
        for (name, value) in &inode.xattrs {
            write!(text, " {}={value:?}", printable(name)).unwrap();
        }
        text
    };
    tree.walk().iter().map(line).collect()
}
