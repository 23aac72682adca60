//! What a whole disk's owner can put before `disk-boot`: a disk, or one configuration of a boot loader.
//! The first byte says which.

use std::io::Write as _;

use disk_boot::filesystem::{FileError, FileSystem, Kind, Node, Sink};
use disk_boot::source::Source;
use disk_boot::table::Scheme;
use disk_boot::volumes::{Volume, Volumes};
use disk_boot::{choose, extract};

/// Reads a disk, or a file system with one configuration.
pub(crate) fn disk_boot(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let path = match kind % 4 {
        0 => return disk(bytes),
        1 => "boot/grub/grub.cfg",
        2 => "loader/entries/a.conf",
        _ => "boot/extlinux.conf",
    };
    let system = Box::new(OneFile { path, bytes: bytes.to_vec() });
    let partition = Some((Scheme::Gpt, 1));
    boot(&Volumes { all: vec![Volume { partition, system }], others: Vec::new() });
}

fn disk(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("its bytes");
    let window = Source::new(file).expect("its size").window();
    if let Ok(volumes) = Volumes::open(&window) {
        boot(&volumes);
    }
}

fn boot(volumes: &Volumes) {
    if let Ok(choice) = choose(volumes) {
        let _ = extract(volumes, &choice, &mut std::io::sink(), &mut std::io::sink());
    }
}

/// A file system of one file, which is every kernel too.
struct OneFile {
    path: &'static str,
    bytes: Vec<u8>,
}

impl OneFile {
    fn is_it(&self, path: &[String]) -> bool {
        path.join("/") == self.path
    }
}

impl FileSystem for OneFile {
    fn uuid(&self) -> &str {
        "0a0b"
    }

    fn label(&self) -> &str {
        "root"
    }

    fn look(&self, path: &[String]) -> Result<Option<Node>, FileError> {
        let path = path.join("/");
        let size = self.bytes.len() as u64;
        if path == self.path || path.ends_with('k') {
            return Ok(Some(Node { kind: Kind::File, size }));
        }
        let is_folder = self.path.starts_with(&format!("{path}/"));
        Ok(is_folder.then_some(Node { kind: Kind::Folder, size: 0 }))
    }

    fn read_link(&self, _path: &[String]) -> Result<String, FileError> {
        Ok(String::new())
    }

    fn list(&self, path: &[String]) -> Result<Vec<String>, FileError> {
        let name = self.path.strip_prefix(&format!("{}/", path.join("/")));
        Ok(name.map(str::to_owned).into_iter().collect())
    }

    fn copy(&self, path: &[String], sink: &mut Sink<'_>) -> Result<(), FileError> {
        Ok(if self.is_it(path) { sink(&self.bytes) } else { sink(b"\x7fELF") }?)
    }
}
