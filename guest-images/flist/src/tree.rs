//! An image's tree in memory: what every reader makes and every writer takes.
//!
//! Inodes and names are apart, as in a real file system: a directory maps names to [`InodeId`]s, and
//! a hard link is a second name for the same id. Readers of hostile images build trees only through
//! [`Tree::add`], [`Tree::link`] and [`Tree::remove`], which refuse bad names, a second entry of the
//! same name, and anything that would make the graph of directories other than a tree; so whoever
//! takes a [`Tree`] can walk it without fear of cycles.

use std::collections::BTreeMap;

use flist_view::block::BlockRef;
use flist_view::filesystem::Timestamp;

/// Longest name of a directory entry, in bytes.
pub const NAME_SIZE_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const TARGET_SIZE_MAX: usize = 4095;
/// Most inodes in one image.
pub const INODE_COUNT_MAX: usize = 16 << 20;
/// Deepest directory; keeps recursive walks and path buffers bounded.
pub const DEPTH_MAX: u32 = 1024;
/// Largest file, in bytes (what a signed 64-bit offset can address).
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// An inode's place in its [`Tree`]; [`InodeId::ROOT`] is the root directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

/// A whole image, without its blocks' contents.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// One inode: metadata, what it is, and its extended attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Permissions, owner, times.
    pub metadata: Metadata,
    /// What it is.
    pub node: Node,
    /// Extended attributes: full name (`user.mime_type`) to value.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What every inode has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits, set-id and sticky included (`st_mode & 0o7777`).
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of metadata.
    pub ctime: Timestamp,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(FileContents),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A directory's entries and its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    entries: BTreeMap<Vec<u8>, InodeId>,
    parent: Option<InodeId>,
    depth: u32,
    /// `st_size` as the packer's file system had it; no more than a memory of it.
    pub size: u64,
}

/// A regular file: its size, and the blocks that hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileContents {
    /// Size in bytes.
    pub size: u64,
    /// Its blocks in order. All but the last hold `BLOCK_SIZE` bytes. Empty while a tree is still
    /// being packed.
    pub blocks: Vec<BlockRef>,
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Why a tree refuses a change.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Empty, `.`, `..`, too long, or with a slash or NUL.
    #[error(
        "name {0:?}: must be 1 to {NAME_SIZE_MAX} bytes, not \".\" or \"..\", without \"/\" and NUL"
    )]
    Name(String),
    /// The directory has that name already.
    #[error("{0:?}: a second entry of that name in one directory")]
    Duplicate(String),
    /// The parent is something else than a directory.
    #[error("{0:?}: its parent is not a directory")]
    NotADirectory(String),
    /// Hard links to directories would make cycles.
    #[error("{0:?}: a hard link to a directory")]
    DirectoryLink(String),
    /// A symbolic link's target is empty, too long, or holds a NUL.
    #[error("{0:?}: link target must be 1 to {TARGET_SIZE_MAX} bytes without NUL")]
    Target(String),
    /// More than [`DEPTH_MAX`] directories deep.
    #[error("{0:?}: more than {DEPTH_MAX} directories deep")]
    Depth(String),
    /// More than [`INODE_COUNT_MAX`] inodes.
    #[error("more than {INODE_COUNT_MAX} inodes")]
    Count,
}

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// The id as a 0-based position in [`Tree::inodes`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Tree {
    /// A tree with nothing but its root directory.
    #[must_use]
    pub fn new(root: Metadata) -> Self {
        let node = Node::Directory(Directory::default());
        Self { inodes: vec![Inode { metadata: root, node, xattrs: BTreeMap::new() }] }
    }

    /// Makes room for `count` more inodes, so that a reader who knows their number wastes none.
    pub fn reserve(&mut self, count: usize) {
        self.inodes.reserve_exact(count.min(INODE_COUNT_MAX));
    }

    /// Adds an inode under a first name. The node of a new directory must be empty.
    ///
    /// # Errors
    /// [`TreeError`] names the rule that `name`, `parent` or `inode` breaks; the tree is unchanged.
    pub fn add(
        &mut self,
        parent: InodeId,
        name: &[u8],
        mut inode: Inode,
    ) -> Result<InodeId, TreeError> {
        let depth = self.check_entry(parent, name)?;
        if self.inodes.len() >= INODE_COUNT_MAX {
            return Err(TreeError::Count);
        }
        match &mut inode.node {
            Node::Directory(directory) => {
                *directory = Directory {
                    parent: Some(parent),
                    depth: depth + 1,
                    size: directory.size,
                    entries: BTreeMap::new(),
                };
            }
            Node::Symlink(target)
                if target.is_empty() || target.len() > TARGET_SIZE_MAX || target.contains(&0) =>
            {
                return Err(TreeError::Target(printable(name)));
            }
            _ => {}
        }
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| TreeError::Count)?);
        self.inodes.push(inode);
        self.enter(parent, name, id);
        Ok(id)
    }

    /// Gives an inode that is no directory one more name: a hard link.
    ///
    /// # Errors
    /// [`TreeError`], as for [`Tree::add`].
    pub fn link(&mut self, parent: InodeId, name: &[u8], target: InodeId) -> Result<(), TreeError> {
        self.check_entry(parent, name)?;
        if self.directory(target).is_some() {
            return Err(TreeError::DirectoryLink(printable(name)));
        }
        self.enter(parent, name, target);
        Ok(())
    }

    /// Removes an entry with all that is below it, and returns what it named. Inodes stay in
    /// [`Tree::inodes`] without a name until [`Tree::compact`].
    pub fn remove(&mut self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory_mut(parent)?.entries.remove(name)
    }

    /// All inodes by [`InodeId::index`].
    #[must_use]
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// One inode.
    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// One inode, to change. Do not replace a directory's node: use [`Tree::remove`], [`Tree::add`].
    #[must_use]
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// The directory that `id` is, if it is one.
    #[must_use]
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Resolves a path of names from the root, without following symbolic links. Empty components
    /// and `.` are skipped; `..` finds nothing.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<InodeId> {
        let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
        names.into_iter().try_fold(InodeId::ROOT, |id, name| self.directory(id)?.get(name))
    }

    /// Every entry, parents before children, each directory in byte order of names. The root comes
    /// first with an empty path; other paths have no leading slash.
    #[must_use]
    pub fn walk(&self) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.inodes.len());
        let mut pending =
            vec![Entry { path: Vec::new(), parent: InodeId::ROOT, id: InodeId::ROOT }];
        while let Some(entry) = pending.pop() {
            if let Some(directory) = self.directory(entry.id) {
                let children = directory.entries.iter().rev().map(|(name, id)| {
                    let mut path = entry.path.clone();
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(name);
                    Entry { path, parent: entry.id, id: *id }
                });
                pending.extend(children);
            }
            entries.push(entry);
        }
        entries
    }

    /// How many entries name each inode; by [`InodeId::index`]. Directories count as `stat` counts
    /// them: 2, plus one for each subdirectory.
    #[must_use]
    pub fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.inodes.len()];
        counts[0] = 2;
        for entry in self.walk().iter().skip(1) {
            if self.directory(entry.id).is_some() {
                counts[entry.id.index()] = 2;
                counts[entry.parent.index()] += 1;
            } else {
                counts[entry.id.index()] += 1;
            }
        }
        counts
    }

    /// Drops inodes that no entry names any more and renumbers the rest in [`Tree::walk`] order.
    /// Returns, for each new inode in order, the id it had before.
    pub fn compact(&mut self) -> Vec<InodeId> {
        let mut renumbered = vec![None; self.inodes.len()];
        let mut before = Vec::new();
        for entry in self.walk() {
            if renumbered[entry.id.index()].is_none() {
                // `add` keeps the number of inodes within u32.
                renumbered[entry.id.index()] = u32::try_from(before.len()).ok().map(InodeId);
                before.push(entry.id);
            }
        }
        let mut old: Vec<Option<Inode>> =
            std::mem::take(&mut self.inodes).into_iter().map(Some).collect();
        self.inodes = before.iter().filter_map(|id| old[id.index()].take()).collect();
        for inode in &mut self.inodes {
            if let Node::Directory(directory) = &mut inode.node {
                directory.parent = directory.parent.and_then(|id| renumbered[id.index()]);
                for id in directory.entries.values_mut() {
                    *id = renumbered[id.index()].unwrap_or(*id);
                }
            }
        }
        before
    }

    /// Checks name and parent of a new entry; returns the parent's depth.
    fn check_entry(&self, parent: InodeId, name: &[u8]) -> Result<u32, TreeError> {
        if !is_valid_name(name) {
            return Err(TreeError::Name(printable(name)));
        }
        let Some(directory) = self.directory(parent) else {
            return Err(TreeError::NotADirectory(printable(name)));
        };
        if directory.entries.contains_key(name) {
            return Err(TreeError::Duplicate(printable(name)));
        }
        if directory.depth >= DEPTH_MAX {
            return Err(TreeError::Depth(printable(name)));
        }
        Ok(directory.depth)
    }

    fn enter(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.entries.insert(name.to_vec(), id);
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

/// One name of one inode, as [`Tree::walk`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path from the root, without a leading slash.
    pub path: Vec<u8>,
    /// The directory it stands in; the root for the root itself.
    pub parent: InodeId,
    /// What it names.
    pub id: InodeId,
}

impl Directory {
    /// A directory without entries, that was `size` bytes in its packer's eyes.
    #[must_use]
    pub fn with_size(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// The inode with this name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<InodeId> {
        self.entries.get(name).copied()
    }

    /// Entries in byte order of names.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], InodeId)> {
        self.entries.iter().map(|(name, id)| (name.as_slice(), *id))
    }

    /// The directory that holds this one; none for the root.
    #[must_use]
    pub const fn parent(&self) -> Option<InodeId> {
        self.parent
    }
}

impl Node {
    /// The file type bits of `st_mode` (`S_IFMT`).
    #[must_use]
    pub const fn file_type(&self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharacterDevice(_) => 0o020_000,
            Self::Directory(_) => 0o040_000,
            Self::BlockDevice(_) => 0o060_000,
            Self::File(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }
}

impl Inode {
    /// An inode without extended attributes.
    #[must_use]
    pub const fn new(metadata: Metadata, node: Node) -> Self {
        Self { metadata, node, xattrs: BTreeMap::new() }
    }

    /// `st_mode`: type and permissions.
    #[must_use]
    pub const fn mode(&self) -> u32 {
        self.node.file_type() | (self.metadata.permissions & 0o7777)
    }
}

/// Whether `name` can be a directory entry.
#[must_use]
pub fn is_valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_SIZE_MAX
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// A path or name as people can read it, whatever its bytes.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(node: Node) -> Inode {
        Inode::new(Metadata::default(), node)
    }

    fn directory(tree: &mut Tree, parent: InodeId, name: &[u8]) -> InodeId {
        tree.add(parent, name, inode(Node::Directory(Directory::default()))).unwrap()
    }

    fn file(tree: &mut Tree, parent: InodeId, name: &[u8]) -> InodeId {
        tree.add(parent, name, inode(Node::File(FileContents::default()))).unwrap()
    }

    fn paths(tree: &Tree) -> Vec<String> {
        tree.walk().into_iter().map(|entry| printable(&entry.path)).collect()
    }

    #[test]
    fn only_names_that_a_directory_can_hold() {
        let mut tree = Tree::new(Metadata::default());
        let long = [b'x'; NAME_SIZE_MAX + 1];
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &long] {
            let error = tree.add(InodeId::ROOT, name, inode(Node::Fifo)).unwrap_err();
            assert!(matches!(error, TreeError::Name(_)), "{error}");
        }
        for name in [&b"..."[..], b"\xff", b" ", &long[1..]] {
            tree.add(InodeId::ROOT, name, inode(Node::Fifo)).unwrap();
        }
        assert_eq!(tree.inodes().len(), 5, "what is refused leaves nothing behind");
    }

    #[test]
    fn what_would_not_be_a_tree_is_refused() {
        let mut tree = Tree::new(Metadata::default());
        let folder = directory(&mut tree, InodeId::ROOT, b"folder");
        let leaf = file(&mut tree, folder, b"leaf");
        let fifo = || inode(Node::Fifo);
        assert!(matches!(tree.add(folder, b"leaf", fifo()), Err(TreeError::Duplicate(_))));
        assert!(matches!(tree.link(folder, b"leaf", leaf), Err(TreeError::Duplicate(_))));
        assert!(matches!(tree.add(leaf, b"x", fifo()), Err(TreeError::NotADirectory(_))));
        assert!(matches!(tree.link(leaf, b"x", leaf), Err(TreeError::NotADirectory(_))));
        for target in [InodeId::ROOT, folder] {
            assert!(matches!(tree.link(folder, b"x", target), Err(TreeError::DirectoryLink(_))));
        }
        for target in [vec![], vec![b'x'; TARGET_SIZE_MAX + 1], b"a\0b".to_vec()] {
            let link = inode(Node::Symlink(target));
            assert!(matches!(tree.add(folder, b"link", link), Err(TreeError::Target(_))));
        }
    }

    #[test]
    fn depth_is_bounded() {
        let mut tree = Tree::new(Metadata::default());
        let mut deepest = InodeId::ROOT;
        for _ in 0..DEPTH_MAX {
            deepest = directory(&mut tree, deepest, b"d");
        }
        let error = tree.add(deepest, b"d", inode(Node::Fifo)).unwrap_err();
        assert!(matches!(error, TreeError::Depth(_)));
        assert_eq!(tree.walk().len(), DEPTH_MAX as usize + 1);
    }

    #[test]
    fn a_new_directory_brings_no_entries_with_it() {
        let mut tree = Tree::new(Metadata::default());
        let full = directory(&mut tree, InodeId::ROOT, b"full");
        file(&mut tree, full, b"leaf");
        let copy = tree.inode(full).clone();
        let copied = tree.add(full, b"copy", copy).unwrap();
        let entries = tree.directory(copied).unwrap().entries().count();
        assert_eq!(entries, 0);
        assert_eq!(tree.directory(copied).unwrap().parent(), Some(full));
    }

    #[test]
    fn paths_are_walked_in_byte_order_and_found_again() {
        let mut tree = Tree::new(Metadata::default());
        let b = directory(&mut tree, InodeId::ROOT, b"b");
        let leaf = file(&mut tree, b, b"leaf");
        file(&mut tree, InodeId::ROOT, b"b.txt");
        tree.link(InodeId::ROOT, b"a", leaf).unwrap();
        assert_eq!(paths(&tree), ["", "a", "b", "b/leaf", "b.txt"]);
        assert_eq!(tree.find(b"b/leaf"), Some(leaf));
        assert_eq!(tree.find(b"//b/./leaf/"), Some(leaf));
        assert_eq!(tree.find(b""), Some(InodeId::ROOT));
        for path in [&b"b/../a"[..], b"a/x", b"c", b"b/leaf/.."] {
            assert_eq!(tree.find(path), None);
        }
        assert_eq!(tree.link_counts()[..3], [3, 2, 2]);
    }

    #[test]
    fn what_was_removed_is_gone_after_compaction() {
        let mut tree = Tree::new(Metadata::default());
        let gone = directory(&mut tree, InodeId::ROOT, b"gone");
        let kept = file(&mut tree, gone, b"leaf");
        file(&mut tree, gone, b"lost");
        let folder = directory(&mut tree, InodeId::ROOT, b"z");
        tree.link(folder, b"kept", kept).unwrap();
        assert_eq!(tree.remove(InodeId::ROOT, b"gone"), Some(gone));
        assert_eq!(tree.remove(InodeId::ROOT, b"gone"), None);
        assert_eq!(tree.compact(), [InodeId::ROOT, folder, kept]);
        assert_eq!(paths(&tree), ["", "z", "z/kept"]);
        assert_eq!(tree.inodes().len(), 3);
        let folder = tree.find(b"z").unwrap();
        assert_eq!(tree.directory(folder).unwrap().parent(), Some(InodeId::ROOT));
        assert_eq!(tree.link_counts(), [3, 2, 1]);
    }
}
