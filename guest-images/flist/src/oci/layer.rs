//! Applies the layers of an image, bottom-up, to a [`Tree`] in memory (OCI image spec, "Layer
//! Filesystem Changeset").
//!
//! No file is created and nothing is unpacked: the tree remembers where in its layer each file's
//! bytes are. So no privilege is needed for devices and owners, and no name can escape from
//! anywhere.
//!
//! **Names.** `./` in front and `.` within are dropped. `/` alone is the root, as some builders
//! write it. Any other name that begins with `/`, and any with `..`, is refused, for hard links'
//! targets too.
//!
//! **Symbolic links in the middle of a name** are followed inside the tree, as container runtimes
//! do: with `/lib -> usr/lib` below, a layer's `lib/x` is `usr/lib/x`. `..` in a link's target stops
//! at the root. At most [`SYMLINK_COUNT_MAX`] are followed. The last component is never followed.
//!
//! **Replacing.** A directory over a directory sets its metadata and keeps its children; anything
//! else replaces what was there with all that was below it, always as a new inode, so that other
//! names of a replaced file keep the old one. Missing parents become directories with mode 0755,
//! owner 0 and time 0.
//!
//! **Whiteouts** hide names of lower layers only, wherever they stand in their layer: what the same
//! layer has touched stays. A whiteout whose directory is behind a symbolic link waits for the end
//! of its layer, since that layer may yet replace the link by a directory of its own, and then that
//! directory is meant. Other names beginning with `.wh..wh.` are bookkeeping of old builders and are
//! skipped.

use std::collections::{HashMap, HashSet};

use super::region::ReadAt;
use super::tar::{Archive, Extent, FileData, Kind, Member, TarError};
use crate::progress::{Cancelled, Progress};
use crate::tree::{
    FileContents, Inode, InodeId, Metadata, Node, Tree, TreeError, is_valid_name, printable,
};

/// Most symbolic links followed for one name (Linux: `MAXSYMLINKS`).
pub const SYMLINK_COUNT_MAX: u32 = 40;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_RESERVED_PREFIX: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const IMPLICIT_DIRECTORY_PERMISSIONS: u32 = 0o755;
/// Members between two looks at whether the user wants to stop.
const CHECK_INTERVAL: u64 = 256;

/// Bounds on what all layers of an image together may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLimits {
    /// Members of all archives.
    pub entry_count_max: u64,
    /// Inodes, those that a later layer hides included.
    pub inode_count_max: usize,
    /// Bytes of all files, holes included.
    pub contents_size_max: u64,
    /// Bytes of names, link targets and extended attributes.
    pub metadata_size_max: u64,
    /// Pieces of all files; a file that is not sparse has one.
    pub extent_count_max: u64,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self {
            entry_count_max: 8 << 20,
            inode_count_max: 4 << 20,
            contents_size_max: 256 << 30,
            metadata_size_max: 512 << 20,
            extent_count_max: 8 << 20,
        }
    }
}

/// A root file system in the making.
#[derive(Debug)]
pub struct Rootfs {
    tree: Tree,
    /// By [`InodeId::index`].
    sources: Vec<Source>,
    limits: TreeLimits,
    used: Used,
    /// The layer that is being applied, counted from 0.
    layer: usize,
    /// Names that this layer made, changed or passed through.
    touched: HashMap<InodeId, HashSet<Vec<u8>>>,
    /// Whiteouts behind symbolic links, for the end of the layer.
    deferred: Vec<Whiteout>,
}

/// Where an inode's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It has none, or its file is empty.
    Nothing,
    /// In a layer.
    Layer {
        /// The layer's index, from the bottom.
        layer: usize,
        /// Where in the layer's archive.
        extents: Box<[Extent]>,
    },
    /// In memory: a file that the conversion itself made.
    Memory(Vec<u8>),
}

/// Why a layer can't be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its archive is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A member breaks a rule.
    #[error("{name:?}: {rule}")]
    Member {
        /// The member's name.
        name: String,
        /// What it breaks.
        rule: String,
    },
    /// A member does not fit into the tree.
    #[error("{name:?}")]
    Tree {
        /// The member's name.
        name: String,
        /// The rule.
        #[source]
        source: TreeError,
    },
    /// The layers hold more than is allowed.
    #[error("the image has more than {limit} {what}")]
    Limit {
        /// How many are allowed.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What the layers have used of [`TreeLimits`].
#[derive(Debug, Default)]
struct Used {
    entry_count: u64,
    contents_size: u64,
    metadata_size: u64,
    extent_count: u64,
}

/// `directory` loses its lower children: the one called `name`, or all.
#[derive(Clone, Debug)]
struct Whiteout {
    directory: Vec<Vec<u8>>,
    name: Option<Vec<u8>>,
}

/// What looking up a directory found.
enum Found {
    Directory(InodeId),
    Missing,
    /// There is a symbolic link on the way, and it was not to be followed.
    Symlink,
}

/// How a directory is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// Follow symbolic links, make what is missing, mark all as touched.
    Create,
    /// Follow symbolic links.
    Follow,
    /// Stop at the first symbolic link.
    Plain,
}

impl Rootfs {
    /// An empty root directory.
    #[must_use]
    pub fn new(limits: TreeLimits) -> Self {
        let root = Metadata { permissions: IMPLICIT_DIRECTORY_PERMISSIONS, ..Metadata::default() };
        Self {
            tree: Tree::new(root),
            sources: vec![Source::Nothing],
            limits,
            used: Used::default(),
            layer: 0,
            touched: HashMap::new(),
            deferred: Vec::new(),
        }
    }

    /// Applies the next layer, an uncompressed archive.
    ///
    /// # Errors
    /// [`LayerError`]; the tree is of no use then.
    pub fn apply(
        &mut self,
        archive: &(impl ReadAt + ?Sized),
        progress: &dyn Progress,
    ) -> Result<(), LayerError> {
        let mut archive = Archive::new(archive);
        while let Some(member) = archive.next()? {
            if self.used.entry_count.is_multiple_of(CHECK_INTERVAL) {
                progress.check()?;
            }
            self.count(&member)?;
            self.apply_member(member)?;
            if self.tree.inodes().len() > self.limits.inode_count_max {
                let limit = self.limits.inode_count_max as u64;
                return Err(LayerError::Limit { limit, what: "inodes" });
            }
        }
        for whiteout in std::mem::take(&mut self.deferred) {
            // What is behind a cycle of links does not exist and needs no hiding.
            let found = self.look_up(&whiteout.directory, Lookup::Follow);
            if let Ok(Found::Directory(directory)) = found {
                self.hide(directory, whiteout.name.as_deref());
            }
        }
        self.touched.clear();
        self.layer += 1;
        Ok(())
    }

    /// The tree so far.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Adds a file that no layer has to the root directory.
    ///
    /// # Errors
    /// [`TreeError`], for instance if the name is taken.
    pub fn add_file(&mut self, name: &[u8], contents: Vec<u8>) -> Result<(), TreeError> {
        let node = Node::File(FileContents { size: contents.len() as u64, blocks: Vec::new() });
        let metadata = Metadata { permissions: 0o644, ..Metadata::default() };
        self.tree.add(InodeId::ROOT, name, Inode::new(metadata, node))?;
        self.sources.push(Source::Memory(contents));
        Ok(())
    }

    /// The finished tree, and where the bytes of each inode are, by [`InodeId::index`].
    #[must_use]
    pub fn finish(mut self) -> (Tree, Vec<Source>) {
        let before = self.tree.compact();
        let mut sources = self.sources;
        let take = |id: InodeId| {
            let source = sources.get_mut(id.index());
            source.map_or(Source::Nothing, |source| std::mem::replace(source, Source::Nothing))
        };
        (self.tree, before.into_iter().map(take).collect())
    }

    /// Adds a member to what is used, and checks that against the limits.
    fn count(&mut self, member: &Member) -> Result<(), LayerError> {
        let (size, extent_count) = match &member.kind {
            Kind::File(data) => (data.size, data.extents.len()),
            _ => (0, 0),
        };
        let target_size = match &member.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
            _ => 0,
        };
        let xattrs_size: usize = member.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        let metadata_size = member.name.len() + target_size + xattrs_size;
        let (used, limits) = (&mut self.used, &self.limits);
        for (used, more, limit, what) in [
            (&mut used.entry_count, 1, limits.entry_count_max, "entries in its layers"),
            (&mut used.contents_size, size, limits.contents_size_max, "bytes of contents"),
            (
                &mut used.metadata_size,
                metadata_size as u64,
                limits.metadata_size_max,
                "bytes of names and attributes",
            ),
            (
                &mut used.extent_count,
                extent_count as u64,
                limits.extent_count_max,
                "pieces of sparse files",
            ),
        ] {
            *used = used.saturating_add(more);
            if *used > limit {
                return Err(LayerError::Limit { limit, what });
            }
        }
        Ok(())
    }

    fn apply_member(&mut self, member: Member) -> Result<(), LayerError> {
        let path = components(&member.name).map_err(|rule| refuse(&member.name, rule))?;
        let Some((name, parents)) = path.split_last() else {
            return self.set_root(&member);
        };
        if let Some(whiteout) = Whiteout::parse(name, parents) {
            let whiteout = whiteout.map_err(|rule| refuse(&member.name, rule))?;
            return self.apply_whiteout(whiteout).map_err(|error| error.named(&member.name));
        }
        if path.iter().any(|component| component.starts_with(WHITEOUT_RESERVED_PREFIX)) {
            return Ok(());
        }
        let parent = match self.look_up(parents, Lookup::Create) {
            Ok(Found::Directory(id)) => id,
            Ok(_) => return Err(refuse(&member.name, "its parent is not a directory")),
            Err(error) => return Err(error.named(&member.name)),
        };
        let name = name.clone();
        self.put(parent, &name, member)
    }

    fn set_root(&mut self, member: &Member) -> Result<(), LayerError> {
        if member.kind != Kind::Directory {
            return Err(refuse(&member.name, "the root is not a directory"));
        }
        self.set_metadata(InodeId::ROOT, member);
        Ok(())
    }

    fn set_metadata(&mut self, id: InodeId, member: &Member) {
        let inode = self.tree.inode_mut(id);
        inode.metadata = metadata(member);
        inode.xattrs.clone_from(&member.xattrs);
    }

    /// Enters a member into its directory.
    fn put(&mut self, parent: InodeId, name: &[u8], member: Member) -> Result<(), LayerError> {
        let existing = self.tree.directory(parent).and_then(|directory| directory.get(name));
        if let Kind::HardLink(target) = &member.kind {
            let target = self.link_target(&member.name, target)?;
            if existing != Some(target) {
                self.tree.remove(parent, name);
                let linked = self.tree.link(parent, name, target);
                linked.map_err(|source| tree_error(&member.name, source))?;
            }
        } else if let Some(id) = existing
            .filter(|id| member.kind == Kind::Directory && self.tree.directory(*id).is_some())
        {
            self.set_metadata(id, &member);
        } else {
            self.tree.remove(parent, name);
            self.add(parent, name, member)?;
        }
        self.touch(parent, name);
        Ok(())
    }

    fn add(&mut self, parent: InodeId, name: &[u8], member: Member) -> Result<(), LayerError> {
        let metadata = metadata(&member);
        let (node, source) = self.node(member.kind);
        let inode = Inode { metadata, node, xattrs: member.xattrs };
        let added = self.tree.add(parent, name, inode);
        added.map_err(|source| tree_error(&member.name, source))?;
        self.sources.push(source);
        Ok(())
    }

    fn node(&self, kind: Kind) -> (Node, Source) {
        let node = match kind {
            Kind::File(FileData { size, extents }) => {
                let node = Node::File(FileContents { size, blocks: Vec::new() });
                let source = Source::Layer { layer: self.layer, extents: extents.into() };
                return (node, if size == 0 { Source::Nothing } else { source });
            }
            // `put` has taken hard links out.
            Kind::Directory | Kind::HardLink(_) => Node::Directory(Default::default()),
            Kind::Symlink(target) => Node::Symlink(target),
            Kind::CharacterDevice(number) => Node::CharacterDevice(number),
            Kind::BlockDevice(number) => Node::BlockDevice(number),
            Kind::Fifo => Node::Fifo,
        };
        (node, Source::Nothing)
    }

    /// The inode that a hard link names.
    fn link_target(&mut self, name: &[u8], target: &[u8]) -> Result<InodeId, LayerError> {
        let missing = || {
            refuse(name, &format!("a hard link to {:?}, which does not exist", printable(target)))
        };
        let path = components(target).map_err(|rule| {
            refuse(name, &format!("its hard link's target {:?}: {rule}", printable(target)))
        })?;
        let Some((last, parents)) = path.split_last() else {
            return Err(tree_error(name, TreeError::DirectoryLink(printable(target))));
        };
        let parent = self.look_up(parents, Lookup::Follow).map_err(|error| error.named(name))?;
        let Found::Directory(parent) = parent else { return Err(missing()) };
        self.tree.directory(parent).and_then(|found| found.get(last)).ok_or_else(missing)
    }

    /// Finds a directory from the root.
    fn look_up(&mut self, path: &[Vec<u8>], lookup: Lookup) -> Result<Found, LookupError> {
        let mut at = InodeId::ROOT;
        let mut symlink_count = 0;
        let mut pending: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        while let Some(name) = pending.pop() {
            if name == b".." {
                let parent = self.tree.directory(at).and_then(|directory| directory.parent());
                at = parent.unwrap_or(InodeId::ROOT);
                continue;
            }
            let Some(id) = self.tree.directory(at).and_then(|directory| directory.get(&name))
            else {
                if lookup != Lookup::Create {
                    return Ok(Found::Missing);
                }
                at = self.add_implicit(at, &name)?;
                continue;
            };
            if lookup == Lookup::Create {
                self.touch(at, &name);
            }
            match &self.tree.inode(id).node {
                Node::Directory(_) => at = id,
                Node::Symlink(_) if lookup == Lookup::Plain => return Ok(Found::Symlink),
                Node::Symlink(target) => {
                    symlink_count += 1;
                    if symlink_count > SYMLINK_COUNT_MAX {
                        return Err(LookupError::Symlinks);
                    }
                    if target.first() == Some(&b'/') {
                        at = InodeId::ROOT;
                    }
                    pending.extend(
                        target.rsplit(|b| *b == b'/').filter(|n| is_step(n)).map(Vec::from),
                    );
                }
                _ if lookup == Lookup::Create => {
                    return Err(LookupError::NotADirectory(printable(&name)));
                }
                _ => return Ok(Found::Missing),
            }
        }
        Ok(Found::Directory(at))
    }

    fn add_implicit(&mut self, parent: InodeId, name: &[u8]) -> Result<InodeId, LookupError> {
        let permissions = IMPLICIT_DIRECTORY_PERMISSIONS;
        let metadata = Metadata { permissions, ..Metadata::default() };
        let inode = Inode::new(metadata, Node::Directory(Default::default()));
        let id = self.tree.add(parent, name, inode).map_err(LookupError::Tree)?;
        self.sources.push(Source::Nothing);
        self.touch(parent, name);
        Ok(id)
    }

    fn apply_whiteout(&mut self, whiteout: Whiteout) -> Result<(), LookupError> {
        match self.look_up(&whiteout.directory, Lookup::Plain)? {
            Found::Directory(directory) => self.hide(directory, whiteout.name.as_deref()),
            Found::Symlink => self.deferred.push(whiteout),
            Found::Missing => {}
        }
        Ok(())
    }

    /// Removes what lower layers have under `name` in `directory`, or everywhere in it.
    fn hide(&mut self, directory: InodeId, name: Option<&[u8]>) {
        let Some(name) = name else { return self.prune(directory) };
        if !self.is_touched(directory, name) {
            self.tree.remove(directory, name);
        } else if let Some(id) = self.tree.directory(directory).and_then(|found| found.get(name)) {
            self.prune(id);
        }
    }

    /// Removes all names below `top` that this layer has not touched.
    fn prune(&mut self, top: InodeId) {
        let mut pending = vec![top];
        while let Some(at) = pending.pop() {
            let Some(directory) = self.tree.directory(at) else { continue };
            let (kept, hidden): (Vec<_>, Vec<_>) = directory
                .entries()
                .map(|(name, id)| (name.to_vec(), id))
                .partition(|(name, _)| self.is_touched(at, name));
            pending.extend(kept.into_iter().map(|(_, id)| id));
            for (name, _) in hidden {
                self.tree.remove(at, &name);
            }
        }
    }

    fn touch(&mut self, directory: InodeId, name: &[u8]) {
        let names = self.touched.entry(directory).or_default();
        if !names.contains(name) {
            names.insert(name.to_vec());
        }
    }

    fn is_touched(&self, directory: InodeId, name: &[u8]) -> bool {
        self.touched.get(&directory).is_some_and(|names| names.contains(name))
    }
}

impl Whiteout {
    /// The whiteout that `name` in directory `parents` is, if it is one.
    fn parse(name: &[u8], parents: &[Vec<u8>]) -> Option<Result<Self, &'static str>> {
        let directory = parents.to_vec();
        if name == WHITEOUT_OPAQUE {
            return Some(Ok(Self { directory, name: None }));
        }
        if name.starts_with(WHITEOUT_RESERVED_PREFIX) {
            return None;
        }
        let hidden = name.strip_prefix(WHITEOUT_PREFIX)?;
        if !is_valid_name(hidden) {
            return Some(Err("a whiteout of no valid name"));
        }
        Some(Ok(Self { directory, name: Some(hidden.to_vec()) }))
    }
}

/// Why a directory can't be looked up.
#[derive(Debug)]
enum LookupError {
    Symlinks,
    NotADirectory(String),
    Tree(TreeError),
}

impl LookupError {
    fn named(self, name: &[u8]) -> LayerError {
        match self {
            Self::Symlinks => {
                let count = SYMLINK_COUNT_MAX;
                refuse(name, &format!("more than {count} symbolic links on its way, or a cycle"))
            }
            Self::NotADirectory(part) => {
                refuse(name, &format!("{part:?} on its way is not a directory"))
            }
            Self::Tree(source) => tree_error(name, source),
        }
    }
}

/// The components of a member's name or a hard link's target; none for the root.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    if path.is_empty() {
        return Err("an empty name");
    }
    if path.first() == Some(&b'/') && path.iter().any(|byte| *byte != b'/') {
        return Err("an absolute name");
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| is_step(name));
    names
        .map(|name| if name == b".." { Err("\"..\" in a name") } else { Ok(name.to_vec()) })
        .collect()
}

/// Whether a component leads anywhere.
fn is_step(name: &[u8]) -> bool {
    !name.is_empty() && name != b"."
}

fn metadata(member: &Member) -> Metadata {
    Metadata {
        permissions: member.permissions,
        uid: member.uid,
        gid: member.gid,
        mtime: member.mtime,
        ctime: member.ctime,
    }
}

fn refuse(name: &[u8], rule: &str) -> LayerError {
    LayerError::Member { name: printable(name), rule: rule.to_owned() }
}

fn tree_error(name: &[u8], source: TreeError) -> LayerError {
    LayerError::Tree { name: printable(name), source }
}

#[cfg(test)]
mod tests;
