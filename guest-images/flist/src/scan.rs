//! A directory on this machine, as a [`Tree`] and its [`Contents`].
//!
//! Everything that `lstat`, `readlink` and `llistxattr` show is kept: all types of inodes, owners,
//! permissions with set-id bits, times to the nanosecond, hard links, extended attributes. Nothing is
//! followed: a symbolic link is packed as a link.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flist_view::filesystem::Timestamp;
use rustix::fs::{lgetxattr, llistxattr, llistxattr_query, major, minor};
use rustix::io::Errno;

use crate::pack::Contents;
use crate::progress::{Cancelled, Progress};
use crate::tree::{
    DeviceNumber, Directory, FileContents, Inode, InodeId, Metadata, Node, Tree, TreeError,
};

/// Most bytes of extended attribute names, and of one value, on one inode (`XATTR_LIST_MAX`,
/// `XATTR_SIZE_MAX` of Linux).
const XATTR_SIZE_MAX: usize = 64 * 1024;

/// What to leave out of a scan.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// Stay on the file system of the directory itself; mount points are packed empty.
    pub one_file_system: bool,
    /// Paths below the directory, relative to it, that are left out with all below them.
    pub exclude: BTreeSet<PathBuf>,
}

/// The directory's files, for the packer to read.
#[derive(Debug)]
pub struct DirectoryContents {
    root: PathBuf,
    /// First path of each regular file, relative to `root`.
    paths: HashMap<InodeId, PathBuf>,
}

/// Why a directory can't be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The system refused.
    #[error("{path}: cannot be {action}")]
    Read {
        /// The file.
        path: String,
        /// `listed`, `read`, `inspected`.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An image can't hold it.
    #[error("{path}: cannot be packed")]
    Entry {
        /// The file.
        path: String,
        /// The rule.
        #[source]
        source: TreeError,
    },
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Lists `directory` and all below it.
///
/// # Errors
/// [`ScanError`] names the path. A file that can't be inspected fails the scan: an image that
/// silently lacks files is worse than none.
pub fn scan(
    directory: &Path,
    options: &ScanOptions,
    progress: &dyn Progress,
) -> Result<(Tree, DirectoryContents), ScanError> {
    let failed = |action| move |source| read_error(directory, action, source);
    let metadata = std::fs::metadata(directory).map_err(failed("inspected"))?;
    if !metadata.is_dir() {
        return Err(read_error(directory, "listed", io::ErrorKind::NotADirectory.into()));
    }
    let root = directory.canonicalize().map_err(failed("inspected"))?;
    let mut tree = Tree::new(metadata_of(&metadata));
    let inode = tree.inode_mut(InodeId::ROOT);
    inode.xattrs = xattrs(&root)?;
    inode.node = Node::Directory(Directory::with_size(metadata.size()));
    let scan = Scan { options, progress, device: metadata.dev(), tree, links: HashMap::new() };
    scan.run(root)
}

impl Contents for DirectoryContents {
    fn open(&self, id: InodeId, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let path = self.paths.get(&id).ok_or(io::ErrorKind::NotFound)?;
        let mut file = File::open(self.root.join(path))?;
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(Box::new(file))
    }

    fn name(&self, id: InodeId) -> String {
        let path = self.paths.get(&id).map_or_else(|| Path::new(""), PathBuf::as_path);
        self.root.join(path).display().to_string()
    }
}

struct Scan<'a> {
    options: &'a ScanOptions,
    progress: &'a dyn Progress,
    /// Of the directory itself.
    device: u64,
    tree: Tree,
    /// Inodes with more than one name, by device and inode number.
    links: HashMap<(u64, u64), InodeId>,
}

impl Scan<'_> {
    fn run(mut self, root: PathBuf) -> Result<(Tree, DirectoryContents), ScanError> {
        let mut paths = HashMap::new();
        let mut pending = vec![(InodeId::ROOT, PathBuf::new())];
        while let Some((parent, below)) = pending.pop() {
            self.progress.check()?;
            for name in list(&root.join(&below))? {
                let path = below.join(OsStr::from_bytes(&name));
                if self.options.exclude.contains(&path) {
                    continue;
                }
                match self.add(parent, &name, &root.join(&path))? {
                    Added::Directory(id) => pending.push((id, path)),
                    Added::File(id) => drop(paths.insert(id, path)),
                    Added::Other => {}
                }
            }
        }
        Ok((self.tree, DirectoryContents { root, paths }))
    }

    fn add(&mut self, parent: InodeId, name: &[u8], path: &Path) -> Result<Added, ScanError> {
        let failed = |source| ScanError::Entry { path: path.display().to_string(), source };
        let metadata =
            path.symlink_metadata().map_err(|source| read_error(path, "inspected", source))?;
        let identity = (metadata.dev(), metadata.ino());
        if let Some(first) = self.links.get(&identity) {
            self.tree.link(parent, name, *first).map_err(failed)?;
            return Ok(Added::Other);
        }
        let mut inode = Inode::new(metadata_of(&metadata), node_of(&metadata, path)?);
        inode.xattrs = xattrs(path)?;
        let id = self.tree.add(parent, name, inode).map_err(failed)?;
        if metadata.is_dir() {
            let elsewhere = metadata.dev() != self.device;
            return Ok(match elsewhere && self.options.one_file_system {
                true => Added::Other,
                false => Added::Directory(id),
            });
        }
        if metadata.nlink() > 1 {
            self.links.insert(identity, id);
        }
        Ok(if metadata.is_file() { Added::File(id) } else { Added::Other })
    }
}

/// What was added, as far as the scan has more to do with it.
enum Added {
    Directory(InodeId),
    File(InodeId),
    Other,
}

/// Names in a directory, in byte order, so that a scan has the same result each time.
fn list(path: &Path) -> Result<Vec<Vec<u8>>, ScanError> {
    let failed = |source| read_error(path, "listed", source);
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().as_bytes().to_vec()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    names.sort_unstable();
    Ok(names)
}

fn metadata_of(metadata: &std::fs::Metadata) -> Metadata {
    Metadata {
        permissions: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: timestamp(metadata.mtime(), metadata.mtime_nsec()),
        ctime: timestamp(metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn timestamp(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or_default() }
}

fn node_of(metadata: &std::fs::Metadata, path: &Path) -> Result<Node, ScanError> {
    let kind = metadata.file_type();
    let device = DeviceNumber { major: major(metadata.rdev()), minor: minor(metadata.rdev()) };
    Ok(if kind.is_dir() {
        Node::Directory(Directory::with_size(metadata.size()))
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(|source| read_error(path, "read", source))?;
        Node::Symlink(target.into_os_string().as_bytes().to_vec())
    } else if kind.is_char_device() {
        Node::CharacterDevice(device)
    } else if kind.is_block_device() {
        Node::BlockDevice(device)
    } else if kind.is_fifo() {
        Node::Fifo
    } else if kind.is_socket() {
        Node::Socket
    } else {
        Node::File(FileContents { size: metadata.size(), blocks: Vec::new() })
    })
}

/// All extended attributes; none on file systems that have none.
fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ScanError> {
    let failed = |errno: Errno| read_error(path, "read", errno.into());
    // Most inodes have none: ask for the size first, which allocates nothing.
    match llistxattr_query(path) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Ok(_) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let mut names = vec![0; XATTR_SIZE_MAX];
    let size = llistxattr(path, &mut names).map_err(failed)?;
    let mut value = vec![0; XATTR_SIZE_MAX];
    let mut xattrs = BTreeMap::new();
    for name in names[..size].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let name = CString::from(name);
        match lgetxattr(path, &name, &mut value) {
            Ok(size) => drop(xattrs.insert(name.into_bytes(), value[..size].to_vec())),
            // Removed meanwhile, or a virtual attribute that lists itself without a value.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(xattrs)
}

fn read_error(path: &Path, action: &'static str, source: io::Error) -> ScanError {
    ScanError::Read { path: path.display().to_string(), action, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::progress::Quiet;

    fn scanned(path: &Path, options: &ScanOptions) -> (Tree, DirectoryContents) {
        scan(path, options, &Quiet).unwrap()
    }

    #[test]
    fn types_modes_links_and_times_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/file"), b"text").unwrap();
        std::fs::set_permissions(at("d/file"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::hard_link(at("d/file"), at("same")).unwrap();
        symlink("d/absent", at("link")).unwrap();
        let (tree, contents) = scanned(folder.path(), &ScanOptions::default());

        let file = tree.find(b"d/file").unwrap();
        assert_eq!(tree.find(b"same"), Some(file));
        assert_eq!(tree.inode(file).mode(), 0o104_751);
        assert_eq!(
            tree.inode(tree.find(b"link").unwrap()).node,
            Node::Symlink(b"d/absent".to_vec())
        );
        let listed = std::fs::metadata(at("same")).unwrap();
        assert_eq!(tree.inode(file).metadata.mtime.seconds, listed.mtime());
        assert_eq!(i64::from(tree.inode(file).metadata.mtime.nanoseconds), listed.mtime_nsec());
        let mut text = String::new();
        contents.open(file, 2).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "xt");
    }

    #[test]
    fn extended_attributes_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        match rustix::fs::setxattr(&file, c"user.origin", b"a\0b", flags) {
            Err(Errno::NOTSUP) => {
                return eprintln!("skipped: no user attributes on this file system");
            }
            set => set.unwrap(),
        }
        let (tree, _) = scanned(folder.path(), &ScanOptions::default());
        let inode = tree.inode(tree.find(b"file").unwrap());
        assert_eq!(inode.xattrs, [(b"user.origin".to_vec(), b"a\0b".to_vec())].into());
    }

    #[test]
    fn excluded_paths_are_left_out_with_all_below_them() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
        std::fs::write(folder.path().join("a/b2"), b"").unwrap();
        let options = ScanOptions { exclude: ["a/b".into()].into(), ..ScanOptions::default() };
        let (tree, _) = scanned(folder.path(), &options);
        assert!(tree.find(b"a/b2").is_some());
        assert_eq!(tree.find(b"a/b"), None);
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = scan(file.path(), &ScanOptions::default(), &Quiet).unwrap_err();
        assert!(error.to_string().ends_with(": cannot be listed"), "{error}");
    }
}
