//! What a node boots an image with, by the files that are in it (`reference: flist 1.4`).
//!
//! | in the image | how it boots |
//! |---|---|
//! | `/image.raw` | as a disk: the image of a whole one, which is copied to a disk of the user's |
//! | `/boot/vmlinuz`, and `/boot/initrd.img` if it is there | with its own kernel |
//! | neither | with the node's kernel, as a container |
//!
//! A VMM maps its kernel before it has a guest, so the kernel is copied out of the image, block by
//! verified block, through the node's cache; so is a disk ([`write_disk`]). Links are followed inside the
//! image: one that leads out of it, or round in circles, leads nowhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flist_view::filesystem::{Attributes, Errno, FileSystem, Ino, ROOT, ReadSink};
use serde::Serialize;

/// Largest kernel, in bytes.
pub const KERNEL_SIZE_MAX: u64 = 128 << 20;
/// Largest initial file system, in bytes.
pub const INITRAMFS_SIZE_MAX: u64 = 512 << 20;
/// Links that are followed on the way to a file, as in Linux.
const LINK_COUNT_MAX: usize = 40;
/// Parts of a path that are walked, those of links included.
const PART_COUNT_MAX: usize = 1024;
const READ_SIZE: u32 = 512 << 10;
/// Bytes of a disk that are left out if they are zeros.
const ZERO_SIZE: usize = 4096;
/// The image of a whole disk.
const DISK: &str = "/image.raw";
const FORMAT_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// How an image boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Boot {
    /// With the node's kernel.
    Container,
    /// With its own kernel, whose files are in the folder now.
    Kernel {
        /// The kernel's name in the folder.
        kernel: &'static str,
        /// The initial file system's, if the image has one.
        initramfs: Option<&'static str>,
    },
    /// As a disk.
    Disk {
        /// Its bytes.
        size: u64,
    },
}

/// Why that can't be said.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file that decides is no file.
    #[error("{0} of the image is no regular file")]
    NoFile(&'static str),
    /// A file is larger than any that is meant.
    #[error("{path} of the image has {size} bytes, at most {size_max} are allowed")]
    Large {
        /// The file.
        path: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        size_max: u64,
    },
    /// The image, or a block of it, can't be read.
    #[error("{path} of the image can't be read ({errno:?}); the cache process says why")]
    Unreadable {
        /// The file.
        path: &'static str,
        /// What went wrong.
        errno: Errno,
    },
    /// The image has no disk.
    #[error("the image has no {DISK}")]
    NoDisk,
    /// Its disk is larger than the one that it is to be written to.
    #[error("image size is bigger than disk: {DISK} has {size} bytes, the disk {size_max}")]
    DiskSize {
        /// The image's.
        size: u64,
        /// The disk's.
        size_max: u64,
    },
    /// What is copied can't be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Looks how `image` boots, and puts its kernel into `folder` if it has one.
///
/// # Errors
/// [`BootError`].
pub fn look(image: &dyn FileSystem, folder: &Path) -> Result<Boot, BootError> {
    if let Some(disk) = file(image, DISK)? {
        return Ok(Boot::Disk { size: disk.size });
    }
    let Some(kernel) = file(image, "/boot/vmlinuz")? else { return Ok(Boot::Container) };
    let initramfs = file(image, "/boot/initrd.img")?;
    copy(image, "/boot/vmlinuz", &kernel, KERNEL_SIZE_MAX, &folder.join("kernel"))?;
    if let Some(initramfs) = &initramfs {
        let target = folder.join("initramfs");
        copy(image, "/boot/initrd.img", initramfs, INITRAMFS_SIZE_MAX, &target)?;
    }
    Ok(Boot::Kernel { kernel: "kernel", initramfs: initramfs.map(|_| "initramfs") })
}

/// Writes the disk that `image` has to `target`, which is a file or a block device, called `path`, of at
/// least its size and of nothing but zeros: those of the image are left out. How many bytes it has; they
/// are on the medium then.
///
/// # Errors
/// [`BootError`]; part of it is written then.
pub fn write_disk(image: &dyn FileSystem, target: &File, path: &Path) -> Result<u64, BootError> {
    let found = file(image, DISK)?.ok_or(BootError::NoDisk)?;
    let io = |source| BootError::Io { path: path.to_owned(), source };
    let size_max = (&mut &*target).seek(SeekFrom::End(0)).map_err(io)?;
    if found.size > size_max {
        return Err(BootError::DiskSize { size: found.size, size_max });
    }
    let (mut offset, mut piece) = (0, Vec::new());
    while offset < found.size {
        piece.clear();
        let mut sink = Copy { file: &mut piece, size: 0 };
        let read = image.read(found.ino, offset, READ_SIZE, &mut sink);
        read.map_err(|errno| BootError::Unreadable { path: DISK, errno })?;
        if piece.is_empty() {
            return Err(BootError::Unreadable { path: DISK, errno: Errno::IO });
        }
        write_sparsely(target, &piece, offset).map_err(io)?;
        offset += piece.len() as u64;
    }
    target.sync_all().map_err(io)?;
    Ok(found.size)
}

/// Writes the pieces that are not zeros, those that follow each other at once.
fn write_sparsely(target: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let is_zeros = |piece: &[u8]| piece.iter().all(|byte| *byte == 0);
    let mut at = offset;
    for run in
        bytes.chunks(ZERO_SIZE).collect::<Vec<_>>().chunk_by(|a, b| is_zeros(a) == is_zeros(b))
    {
        let size: usize = run.iter().map(|piece| piece.len()).sum();
        let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
        match bytes.get(start..).and_then(|rest| rest.get(..size)) {
            Some(run) if !is_zeros(run) => target.write_all_at(run, at)?,
            _ => {}
        }
        at += size as u64;
    }
    Ok(())
}

/// The regular file at `path`; none if there is nothing.
fn file(image: &dyn FileSystem, path: &'static str) -> Result<Option<Attributes>, BootError> {
    match resolve(image, path.as_bytes()) {
        Ok(found) if found.mode & FORMAT_MASK == REGULAR => Ok(Some(found)),
        Ok(_) => Err(BootError::NoFile(path)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(BootError::Unreadable { path, errno }),
    }
}

/// What is at `path`, links followed as if the image were all there is.
fn resolve(image: &dyn FileSystem, path: &[u8]) -> Result<Attributes, Errno> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.map(<[u8]>::to_vec).collect()
    };
    let mut left: VecDeque<Vec<u8>> = parts(path).into();
    let mut above: Vec<Ino> = Vec::new();
    let mut here = image.attributes(ROOT)?;
    let (mut link_count, mut part_count) = (0, 0);
    while let Some(part) = left.pop_front() {
        part_count += 1;
        if part_count > PART_COUNT_MAX {
            return Err(Errno::LOOP);
        }
        match part.as_slice() {
            b"." => continue,
            // Above the root is the root.
            b".." => {
                here = image.attributes(above.pop().unwrap_or(ROOT))?;
                continue;
            }
            _ => {}
        }
        let found = image.lookup(here.ino, &part)?;
        if found.mode & FORMAT_MASK != LINK {
            above.push(here.ino);
            here = found;
            continue;
        }
        link_count += 1;
        if link_count > LINK_COUNT_MAX {
            return Err(Errno::LOOP);
        }
        let target = image.read_link(found.ino)?.into_owned();
        if target.first() == Some(&b'/') {
            above.clear();
            here = image.attributes(ROOT)?;
        }
        parts(&target).into_iter().rev().for_each(|part| left.push_front(part));
    }
    Ok(here)
}

fn copy(
    image: &dyn FileSystem,
    path: &'static str,
    found: &Attributes,
    size_max: u64,
    target: &Path,
) -> Result<(), BootError> {
    if found.size > size_max {
        return Err(BootError::Large { path, size: found.size, size_max });
    }
    let io = |source| BootError::Io { path: target.to_owned(), source };
    let folder = target.parent().unwrap_or_else(|| Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".boot-").tempfile_in(folder).map_err(io)?;
    let mut offset = 0;
    while offset < found.size {
        let mut sink = Copy { file: file.as_file_mut(), size: 0 };
        let read = image.read(found.ino, offset, READ_SIZE, &mut sink);
        read.map_err(|errno| BootError::Unreadable { path, errno })?;
        if sink.size == 0 {
            return Err(BootError::Unreadable { path, errno: Errno::IO });
        }
        offset += sink.size;
    }
    file.as_file().sync_all().map_err(io)?;
    file.persist(target).map_err(|error| io(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// Takes what is read into a file or a vector.
struct Copy<'a, W: Write> {
    file: &'a mut W,
    size: u64,
}

impl<W: Write> ReadSink for Copy<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn file(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<()> {
        let mut bytes = vec![0; size];
        File::from(file.try_clone_to_owned()?).read_exact_at(&mut bytes, offset)?;
        self.bytes(&bytes)
    }

    fn file_up_to(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let mut bytes = vec![0; size];
        let read = File::from(file.try_clone_to_owned()?).read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        self.bytes(&bytes)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use flist_view::block::BlockSource;
    use flist_view::block::{BlockCipher, BlockData, BlockError, BlockId, BlockKey, BlockRef};
    use flist_view::index::Index;
    use flist_view::view::FlistView;

    use super::*;
    use crate::format::Image;
    use crate::tree::{Directory, FileContents, Inode, InodeId, Metadata, Node, Tree};

    /// Blocks of which each is the text `kernel`.
    struct Kernels(Arc<File>);

    impl BlockSource for Kernels {
        fn block(&self, _position: u32, _block: &BlockRef) -> Result<BlockData, BlockError> {
            Ok(BlockData { file: Arc::clone(&self.0), offset: 0, size: 6 })
        }
    }

    fn regular(size: u64) -> Node {
        let block = BlockRef { id: BlockId([1; 32]), key: BlockKey([2; 32]) };
        let blocks = if size == 0 { Vec::new() } else { vec![block] };
        Node::File(FileContents { size, blocks })
    }

    fn link(target: &str) -> Node {
        Node::Symlink(target.as_bytes().to_vec())
    }

    fn view(files: Vec<(&str, Node)>) -> FlistView {
        let metadata = || Metadata { permissions: 0o755, ..Metadata::default() };
        let mut tree = Tree::new(metadata());
        for (path, node) in files {
            let mut parent = InodeId::ROOT;
            let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
            for folder in folders.split('/').filter(|part| !part.is_empty()) {
                let there = tree.directory(parent).unwrap().entries();
                let there = there.into_iter().find(|(found, _)| *found == folder.as_bytes());
                parent = match there.map(|(_, id)| id) {
                    Some(id) => id,
                    None => {
                        let node = Node::Directory(Directory::with_size(4096));
                        tree.add(parent, folder.as_bytes(), Inode::new(metadata(), node)).unwrap()
                    }
                };
            }
            tree.add(parent, name.as_bytes(), Inode::new(metadata(), node)).unwrap();
        }
        let (cipher, tags) = (BlockCipher::Aes256Gcm, BTreeMap::default());
        let image = Image { tree, cipher, routes: Vec::new(), tags };
        let index = Index::from_bytes(crate::index::build(&image, [5; 32]).unwrap()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kernel").unwrap();
        FlistView::new(Arc::new(index), Arc::new(Kernels(Arc::new(file))))
    }

    fn look_at(files: Vec<(&str, Node)>) -> (Result<Boot, BootError>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let boot = look(&view(files), folder.path());
        let there = std::fs::read_dir(folder.path()).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            format!("{}={text}", path.file_name().unwrap().to_string_lossy())
        });
        let mut there: Vec<_> = there.collect();
        there.sort();
        (boot, there)
    }

    #[test]
    fn files_decide_and_kernels_are_copied() {
        let (boot, there) = look_at(vec![("bin/sh", regular(6))]);
        assert_eq!((boot.unwrap(), there), (Boot::Container, vec![]));
        let kernel = || ("boot/vmlinuz", regular(6));
        let (boot, there) = look_at(vec![kernel()]);
        assert_eq!(boot.unwrap(), Boot::Kernel { kernel: "kernel", initramfs: None });
        assert_eq!(there, ["kernel=kernel"]);
        let (boot, there) = look_at(vec![kernel(), ("boot/initrd.img", regular(6))]);
        let initramfs = Some("initramfs");
        assert_eq!(boot.unwrap(), Boot::Kernel { kernel: "kernel", initramfs });
        assert_eq!(there, ["initramfs=kernel", "kernel=kernel"]);
        let (boot, there) = look_at(vec![kernel(), ("image.raw", regular(6))]);
        assert_eq!((boot.unwrap(), there), (Boot::Disk { size: 6 }, vec![]));
    }

    #[test]
    fn a_disk_is_written_without_its_zeros() {
        let target = tempfile::NamedTempFile::new().unwrap();
        target.as_file().write_all_at(b"......last", 0).unwrap();
        let image = view(vec![("image.raw", link("disk")), ("disk", regular(6))]);
        let size = write_disk(&image, target.as_file(), target.path()).unwrap();
        assert_eq!((size, std::fs::read(target.path()).unwrap()), (6, b"kernellast".to_vec()));
        target.as_file().set_len(5).unwrap();
        let error = write_disk(&image, target.as_file(), target.path()).unwrap_err().to_string();
        assert!(error.starts_with("image size is bigger than disk: /image.raw has 6"), "{error}");
        let none = write_disk(&view(vec![]), target.as_file(), target.path()).unwrap_err();
        assert_eq!(none.to_string(), "the image has no /image.raw");

        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(10 << 20).unwrap();
        let mut piece = vec![0; 100_000];
        for (at, byte) in [(0, 1), (4096, 2), (50_000, 3), (99_999, 4)] {
            piece[at] = byte;
        }
        write_sparsely(&sparse, &piece, 1 << 20).unwrap();
        let mut read = vec![9; 100_001];
        sparse.read_exact_at(&mut read, 1 << 20).unwrap();
        assert!(read[..100_000] == piece && read[100_000] == 0);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&sparse.metadata().unwrap());
        assert!(blocks * 512 <= 64 << 10, "{blocks} sectors");
    }

    #[test]
    fn links_stay_inside_the_image() {
        for target in ["/lib/k", "../lib/k", "../../../lib/./k", "other"] {
            let files = vec![
                ("boot/vmlinuz", link(target)),
                ("boot/other", link("/boot/../lib/k")),
                ("lib/k", regular(6)),
            ];
            let (boot, there) = look_at(files);
            assert!(matches!(boot, Ok(Boot::Kernel { .. })), "{target}: {boot:?}");
            assert_eq!(there, ["kernel=kernel"]);
        }
        for target in ["/etc/passwd", "vmlinuz", "../../etc/shadow", "x/y"] {
            let files = vec![("boot/vmlinuz", link(target)), ("boot/x", regular(0))];
            assert_eq!(look_at(files).0.unwrap(), Boot::Container, "{target}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_in_words() {
        let error = |files| look_at(files).0.unwrap_err().to_string();
        let directory = vec![("boot/vmlinuz/x", regular(6))];
        assert_eq!(error(directory), "/boot/vmlinuz of the image is no regular file");
        let short = error(vec![("boot/vmlinuz", regular(7))]);
        assert!(short.contains("/boot/vmlinuz of the image can't be read"), "{short}");
    }
}
