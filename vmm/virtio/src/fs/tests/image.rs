//! Small images, with blocks in one file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use flist_view::block::{
    BLOCK_SIZE, BlockCipher, BlockData, BlockError, BlockId, BlockKey, BlockRef, BlockSource,
};
use flist_view::filesystem::{ROOT, Timestamp};
use flist_view::index::{Contents, Index, IndexWriter, InodeRecord};
use flist_view::view::FlistView;

/// What an image will hold. Paths have no slash in front; directories come before what is in them.
#[derive(Clone, Default)]
pub(in crate::fs) struct Image {
    nodes: Vec<(u32, Node)>,
    /// Nodes by path.
    names: BTreeMap<String, usize>,
}

#[derive(Clone)]
enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    Pipe,
}

/// Time of everything in an image.
pub(super) const TIME: Timestamp = Timestamp { seconds: 1_000_000, nanoseconds: 7 };

impl Image {
    pub(in crate::fs) fn directory(self, path: &str) -> Self {
        self.add(path, 0o040_755, Node::Directory)
    }

    pub(in crate::fs) fn file(self, path: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.add(path, 0o100_644, Node::File(contents.into()))
    }

    pub(super) fn file_with_mode(self, path: &str, mode: u32, contents: &str) -> Self {
        self.add(path, 0o100_000 | mode, Node::File(contents.into()))
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.add(path, 0o120_777, Node::Symlink(target.into()))
    }

    pub(super) fn pipe(self, path: &str) -> Self {
        self.add(path, 0o010_644, Node::Pipe)
    }

    pub(super) fn link(mut self, path: &str, existing: &str) -> Self {
        let node = self.names[existing];
        self.names.insert(path.into(), node);
        self
    }

    fn add(mut self, path: &str, mode: u32, node: Node) -> Self {
        self.nodes.push((mode, node));
        self.names.insert(path.into(), self.nodes.len() - 1);
        self
    }

    /// The same tree in a directory of the host.
    pub(super) fn unpack(&self, to: &Path) {
        let mut done: BTreeMap<usize, String> = BTreeMap::new();
        for (path, node) in &self.names {
            let place = to.join(path);
            if let Some(existing) = done.insert(*node, path.clone()) {
                std::fs::hard_link(to.join(existing), &place).unwrap();
                continue;
            }
            let (mode, contents) = &self.nodes[*node];
            match contents {
                Node::Directory => std::fs::create_dir(&place).unwrap(),
                Node::File(contents) => std::fs::write(&place, contents).unwrap(),
                Node::Symlink(target) => std::os::unix::fs::symlink(target, &place).unwrap(),
                Node::Pipe => {
                    let kind = rustix::fs::FileType::Fifo;
                    let cwd = rustix::fs::CWD;
                    rustix::fs::mknodat(cwd, &place, kind, rustix::fs::Mode::RWXU, 0).unwrap();
                }
            }
            if !matches!(contents, Node::Symlink(_)) {
                let mode = std::fs::Permissions::from_mode(mode & 0o7777);
                std::fs::set_permissions(&place, mode).unwrap();
            }
        }
    }

    /// The image as a file system.
    pub(in crate::fs) fn view(&self) -> FlistView {
        self.view_with(|blocks| Arc::new(blocks))
    }

    /// The same, with blocks that come by way of `source`.
    pub(in crate::fs) fn view_with(
        &self,
        source: impl FnOnce(Blocks) -> Arc<dyn BlockSource>,
    ) -> FlistView {
        let file = tempfile::tempfile().unwrap();
        let (mut blocks, mut end) = (Vec::new(), 0);
        let mut writer = IndexWriter::new([9; 32], BlockCipher::Aes256Gcm);
        self.write_inode(&mut writer, None, &[]);
        for (node, (_, contents)) in self.nodes.iter().enumerate() {
            let mut refs = Vec::new();
            if let Node::File(bytes) = contents {
                for block in bytes.chunks(BLOCK_SIZE as usize) {
                    file.write_all_at(block, end).unwrap();
                    refs.push(BlockRef { id: BlockId([1; 32]), key: BlockKey([2; 32]) });
                    blocks.push((end, u32::try_from(block.len()).unwrap()));
                    end += block.len() as u64;
                }
            }
            self.write_inode(&mut writer, Some(node), &refs);
        }
        let index = Index::from_bytes(writer.finish().unwrap()).unwrap();
        index.verify().unwrap();
        FlistView::new(Arc::new(index), source(Blocks { file: Arc::new(file), blocks }))
    }

    fn write_inode(&self, writer: &mut IndexWriter, node: Option<usize>, blocks: &[BlockRef]) {
        let paths: Vec<&String> =
            self.names.iter().filter(|(_, n)| Some(**n) == node).map(|(path, _)| path).collect();
        let path = paths.first().map_or("", |path| path.as_str());
        let (mode, contents) = node.map_or((0o040_755, &Node::Directory), |node| {
            let (mode, contents) = &self.nodes[node];
            (*mode, contents)
        });
        let entries = self.entries(path);
        let entries: Vec<(&[u8], u64)> =
            entries.iter().map(|(name, ino)| (name.as_bytes(), *ino)).collect();
        let parent = path.rsplit_once('/').map_or(ROOT, |(parent, _)| number(self.names[parent]));
        let contents = match contents {
            Node::Directory => Contents::Directory { parent, size: 4096, entries: &entries },
            Node::File(bytes) => Contents::File { size: bytes.len() as u64, blocks },
            Node::Symlink(target) => Contents::Symlink(target.as_bytes()),
            Node::Pipe => Contents::Other,
        };
        let xattrs: [(&[u8], &[u8]); 1] = [(b"user.image", b"yes")];
        let nlink = match contents {
            Contents::Directory { .. } => 2 + self.directory_count(path),
            _ => paths.len(),
        };
        let record = InodeRecord {
            mode,
            nlink: u32::try_from(nlink).unwrap(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime: TIME,
            ctime: TIME,
            contents,
            xattrs: if matches!(contents, Contents::File { .. }) { &xattrs } else { &[] },
        };
        assert_eq!(writer.inode(&record).unwrap(), node.map_or(ROOT, number));
    }

    /// How many directories are in the directory `path`.
    fn directory_count(&self, path: &str) -> usize {
        let entries = self.entries(path);
        let is_directory = |ino: u64| {
            let node = usize::try_from(ino).unwrap() - 2;
            matches!(self.nodes[node].1, Node::Directory)
        };
        entries.into_iter().filter(|(_, ino)| is_directory(*ino)).count()
    }

    /// Names in the directory `path`, and their inode numbers.
    fn entries(&self, path: &str) -> Vec<(String, u64)> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let below = self.names.iter().filter_map(|(name, node)| {
            let name = name.strip_prefix(&prefix)?;
            (!name.contains('/')).then(|| (name.to_owned(), number(*node)))
        });
        below.collect()
    }
}

/// Numbers follow the root's.
fn number(node: usize) -> u64 {
    node as u64 + 2
}

pub(in crate::fs) struct Blocks {
    file: Arc<File>,
    blocks: Vec<(u64, u32)>,
}

impl BlockSource for Blocks {
    fn block(&self, position: u32, _: &BlockRef) -> Result<BlockData, BlockError> {
        let (offset, size) = self.blocks[position as usize];
        Ok(BlockData { file: Arc::clone(&self.file), offset, size })
    }
}
