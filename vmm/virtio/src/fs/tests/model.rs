//! Random operations on an overlay and on a plain directory with the same contents, side by side.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flist_view::filesystem::Errno;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, RenameFlags};

use super::client::{Attr, Client};
use super::image::Image;
use super::overlay::overlay;

/// What is done; paths are made of few names, so that operations meet.
#[derive(Clone, Debug)]
enum Operation {
    Touch(String),
    MakeDirectory(String),
    Symlink(String),
    Write(String, u16, u8),
    Truncate(String, u16),
    SetMode(String, u32),
    Unlink(String),
    RemoveDirectory(String),
    /// All that is there, as `rm -r` does it.
    RemoveAll(String),
    Rename(String, String, u32),
    Link(String, String),
    Look(String),
    List(String),
    Forget(String),
    Reopen,
}

/// Few paths, mostly those of the image.
fn path() -> impl Strategy<Value = String> {
    let below = prop::collection::vec(prop::sample::select(vec!["a", "b"]), 0..3);
    (prop::sample::select(vec!["a", "a", "b", "c"]), below).prop_map(|(first, below)| {
        std::iter::once(first).chain(below).collect::<Vec<_>>().join("/")
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        2 => path().prop_map(Touch),
        3 => path().prop_map(MakeDirectory),
        1 => path().prop_map(Symlink),
        3 => (path(), 0u16..5000, any::<u8>()).prop_map(|(p, o, b)| Write(p, o, b)),
        1 => (path(), 0u16..5000).prop_map(|(p, s)| Truncate(p, s)),
        1 => (path(), 0u32..0o1000).prop_map(|(p, m)| SetMode(p, m | 0o700)),
        4 => path().prop_map(Unlink),
        4 => path().prop_map(RemoveDirectory),
        4 => path().prop_map(RemoveAll),
        8 => (path(), path(), prop::sample::select(vec![0, 0, 0, 1, 2])).prop_map(|(a, b, f)| Rename(a, b, f)),
        3 => (path(), path()).prop_map(|(a, b)| Link(a, b)),
        1 => path().prop_map(Look),
        1 => path().prop_map(List),
        1 => path().prop_map(Forget),
        1 => Just(Reopen),
    ]
}

fn image() -> Image {
    Image::default()
        .directory("a")
        .directory("a/a")
        .file("a/a/a", "one")
        .directory("a/b")
        .directory("a/b/a")
        .symlink("a/b/b", "nowhere")
        .directory("b")
        .link("b/a", "a/a/a")
        .link("b/b", "a/a/a")
        .file("c", vec![4; 3000])
}

/// Both sides.
struct Rig {
    client: Client,
    volume: tempfile::TempDir,
    plain: tempfile::TempDir,
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Rig {
    fn new() -> Self {
        let (volume, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        image().unpack(plain.path());
        Self { client: overlay(&image(), volume.path()), volume, plain }
    }

    fn plain(&self, path: &str) -> PathBuf {
        self.plain.path().join(path)
    }

    /// A path whose directories are no links, as FUSE has it; and what it is, if it is there.
    fn kind(&self, path: &str) -> Option<u32> {
        fs::symlink_metadata(self.plain(path)).ok().map(|metadata| metadata.mode() & 0o170_000)
    }

    fn parent(&mut self, path: &str) -> Result<u64, Errno> {
        self.client.walk(split(path).0).map(|attr| attr.ino)
    }

    /// Does `operation` on both sides; returns whether it succeeded there and here.
    fn run(&mut self, operation: &Operation) -> (bool, bool) {
        match operation {
            Operation::Reopen => {
                self.client = overlay(&image(), self.volume.path());
                (true, true)
            }
            Operation::Forget(path) => {
                if let Ok(attr) = self.client.walk(path) {
                    self.client.forget(attr.ino, 1);
                }
                (true, true)
            }
            Operation::Look(path) => (self.client.walk(path).is_ok(), self.kind(path).is_some()),
            operation => (self.here(operation).is_ok(), self.there(operation).is_ok()),
        }
    }

    fn here(&mut self, operation: &Operation) -> Result<(), Errno> {
        match operation {
            Operation::Touch(path) => {
                let parent = self.parent(path)?;
                self.client.touch(parent, split(path).1).map(drop)
            }
            Operation::MakeDirectory(path) => {
                let parent = self.parent(path)?;
                self.client.mkdir(parent, split(path).1).map(drop)
            }
            Operation::Symlink(path) => {
                let parent = self.parent(path)?;
                self.client.symlink(parent, split(path).1, "nowhere").map(drop)
            }
            Operation::Write(path, offset, byte) => {
                let file = self.client.walk(path)?.ino;
                self.client.write(file, u64::from(*offset), &[*byte; 10]).map(drop)
            }
            Operation::Truncate(path, size) => {
                let file = self.client.walk(path)?.ino;
                self.client.truncate(file, u64::from(*size)).map(drop)
            }
            Operation::SetMode(path, mode) => {
                let file = self.client.walk(path)?.ino;
                self.client.chmod(file, *mode).map(drop)
            }
            Operation::Unlink(path) => {
                let parent = self.parent(path)?;
                self.client.unlink(parent, split(path).1)
            }
            Operation::RemoveDirectory(path) => {
                let parent = self.parent(path)?;
                self.client.rmdir(parent, split(path).1)
            }
            Operation::RemoveAll(path) => {
                let found = self.client.walk(path)?;
                let parent = self.parent(path)?;
                self.remove_all(parent, split(path).1, found.mode)
            }
            Operation::Rename(from, to, flags) => {
                let (a, b) = (self.parent(from)?, self.parent(to)?);
                self.client.rename((a, split(from).1), (b, split(to).1), *flags)
            }
            Operation::Link(from, to) => {
                let file = self.client.walk(from)?;
                if file.mode & 0o170_000 == 0o040_000 {
                    // The guest's kernel does not ask.
                    return Err(Errno::PERM);
                }
                let parent = self.parent(to)?;
                self.client.link(file.ino, parent, split(to).1).map(drop)
            }
            Operation::List(path) => {
                let directory = self.client.walk(path)?.ino;
                self.client.list(directory, true, 300).map(drop)
            }
            Operation::Look(_) | Operation::Forget(_) | Operation::Reopen => Ok(()),
        }
    }

    fn remove_all(&mut self, parent: u64, name: &str, mode: u32) -> Result<(), Errno> {
        if mode & 0o170_000 != 0o040_000 {
            return self.client.unlink(parent, name);
        }
        let directory = self.client.lookup(parent, name)?.ino;
        for name in self.client.names(directory)? {
            let mode = self.client.lookup(directory, &name)?.mode;
            self.remove_all(directory, &name, mode)?;
        }
        self.client.rmdir(parent, name)
    }

    fn there(&self, operation: &Operation) -> std::io::Result<()> {
        let is = |path: &str, kind: u32| match self.kind(path) {
            Some(found) if found == kind => Ok(()),
            _ => Err(std::io::Error::from(std::io::ErrorKind::Other)),
        };
        match operation {
            Operation::Touch(path) => {
                let path = self.plain(path);
                fs::File::create_new(&path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o644))
            }
            Operation::MakeDirectory(path) => {
                let path = self.plain(path);
                fs::create_dir(&path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            }
            Operation::Symlink(path) => std::os::unix::fs::symlink("nowhere", self.plain(path)),
            Operation::Write(path, offset, byte) => {
                is(path, 0o100_000)?;
                let file = fs::File::options().write(true).open(self.plain(path))?;
                file.write_all_at(&[*byte; 10], u64::from(*offset))
            }
            Operation::Truncate(path, size) => {
                is(path, 0o100_000)?;
                let file = fs::File::options().write(true).open(self.plain(path))?;
                file.set_len(u64::from(*size))
            }
            Operation::SetMode(path, mode) => {
                is(path, 0o100_000).or_else(|_| is(path, 0o040_000))?;
                fs::set_permissions(self.plain(path), fs::Permissions::from_mode(*mode))
            }
            Operation::Unlink(path) => {
                rustix::fs::unlinkat(CWD, self.plain(path), AtFlags::empty())?;
                Ok(())
            }
            Operation::RemoveDirectory(path) => fs::remove_dir(self.plain(path)),
            Operation::RemoveAll(path) => match self.kind(path) {
                Some(0o040_000) => fs::remove_dir_all(self.plain(path)),
                _ => fs::remove_file(self.plain(path)),
            },
            Operation::Rename(from, to, flags) => {
                let flags = RenameFlags::from_bits_retain(*flags);
                let (from, to) = (self.plain(from), self.plain(to));
                rustix::fs::renameat_with(CWD, from, CWD, to, flags)?;
                Ok(())
            }
            Operation::Link(from, to) => fs::hard_link(self.plain(from), self.plain(to)),
            Operation::List(path) => is(path, 0o040_000),
            Operation::Look(_) | Operation::Forget(_) | Operation::Reopen => Ok(()),
        }
    }

    /// Everything the guest can see: by path, what it is, and which paths are one file.
    fn seen_here(&mut self) -> BTreeMap<String, (u32, Vec<u8>, u64)> {
        let mut seen = BTreeMap::new();
        let mut todo = vec![(String::new(), 1)];
        while let Some((path, ino)) = todo.pop() {
            for name in self.client.names(ino).unwrap() {
                let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                let attr = self.client.lookup(ino, &name).unwrap();
                seen.insert(below.clone(), (attr.mode, self.contents(&attr), attr.ino));
                if attr.mode & 0o170_000 == 0o040_000 {
                    todo.push((below, attr.ino));
                }
            }
        }
        seen
    }

    fn contents(&mut self, attr: &Attr) -> Vec<u8> {
        match attr.mode & 0o170_000 {
            0o100_000 => {
                let contents = self.client.read(attr.ino, 0, 16_384).unwrap();
                assert_eq!(contents.len() as u64, attr.size);
                contents
            }
            0o120_000 => self.client.readlink(attr.ino).unwrap().into_bytes(),
            _ => Vec::new(),
        }
    }

    fn seen_there(&self) -> BTreeMap<String, (u32, Vec<u8>, u64)> {
        fn walk(root: &Path, path: &Path, seen: &mut BTreeMap<String, (u32, Vec<u8>, u64)>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let contents = match metadata.mode() & 0o170_000 {
                    0o100_000 => fs::read(&path).unwrap(),
                    0o120_000 => {
                        fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                    }
                    _ => Vec::new(),
                };
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                seen.insert(name, (metadata.mode(), contents, metadata.ino()));
                if metadata.is_dir() {
                    walk(root, &path, seen);
                }
            }
        }
        let mut seen = BTreeMap::new();
        walk(self.plain.path(), self.plain.path(), &mut seen);
        seen
    }
}

/// Sets of paths that are one inode.
fn groups(seen: &BTreeMap<String, (u32, Vec<u8>, u64)>) -> Vec<Vec<&String>> {
    let mut groups: BTreeMap<u64, Vec<&String>> = BTreeMap::new();
    for (path, (_, _, ino)) in seen {
        groups.entry(*ino).or_default().push(path);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort();
    groups
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_does_what_a_plain_directory_does(
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let mut rig = Rig::new();
        for operation in &operations {
            let (here, there) = rig.run(operation);
            prop_assert_eq!(here, there, "{:?}", operation);
        }
        let there = rig.seen_there();
        let here = rig.seen_here();
        rig.client = overlay(&image(), rig.volume.path());
        let again = rig.seen_here();
        for (path, (mode, ..)) in &there {
            if mode & 0o170_000 != 0o040_000 {
                let expected = fs::symlink_metadata(rig.plain(path)).unwrap().nlink();
                prop_assert_eq!(u64::from(rig.client.walk(path).unwrap().nlink), expected, "{}", path);
            }
        }
        for seen in [&here, &again] {
            let paths = |seen: &BTreeMap<String, (u32, Vec<u8>, u64)>| {
                seen.iter().map(|(path, (mode, contents, _))| (path.clone(), *mode, contents.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(paths(seen), paths(&there));
            prop_assert_eq!(groups(seen), groups(&there));
        }
        // Numbers outlive the process, but for those of links, which cannot be marked.
        for (path, (mode, _, ino)) in &here {
            if mode & 0o170_000 != 0o120_000 {
                prop_assert_eq!(again[path].2, *ino, "{}", path);
            }
        }
        let temporary = fs::read_dir(rig.volume.path().join("wd/temporary")).unwrap().count();
        prop_assert_eq!(temporary, 0);
    }
}
