//! Reading `.fl`: rows first, then a tree of them.
//!
//! Rows come in any order and say what they like: a child may stand before its parent, parents may
//! form a ring. So every table is read once, in row order, into [`Row`]s sorted by inode number;
//! then the tree grows from the root along `parent`, and a row that was not reached at the end is an
//! error. A row's values are checked when its path is known, so that messages can name it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockId, BlockKey, BlockRef};
use flist_view::filesystem::Timestamp;

use super::super::database::{Budget, Database, bytes, integer, text};
use super::super::error::Fault;
use super::super::{
    Image, ROUTE_COUNT_MAX, Route, TAG_COUNT_MAX, TAG_KEY_SIZE_MAX, TAG_VALUE_SIZE_MAX,
};
use super::{
    BLOCK_COLUMNS, EXTRA_COLUMNS, HARDLINK_COLUMNS, INODE_COLUMNS, NANOSECONDS, PERMISSION_MASK,
    ROOT_INO, ROOT_NAME, ROUTE_COLUMNS, TAG_COLUMNS, TIME_COLUMNS, TYPE_MASK, XATTR_COLUMNS,
    XATTR_NAME_SIZE_MAX, XATTR_VALUE_SIZE_MAX,
};
use crate::store::url::StoreUrl;
use crate::tree::{
    DEPTH_MAX, DeviceNumber, Directory, FileContents, INODE_COUNT_MAX, Inode, InodeId, Metadata,
    NAME_SIZE_MAX, Node, TARGET_SIZE_MAX, Tree,
};

/// Reads the image at `path`, which begins with SQLite's magic.
pub(in crate::format) fn read(path: &Path) -> Result<Image, Fault> {
    let database = Database::open(path)?;
    let mut budget = database.budget();
    database.require_table("inode", INODE_COLUMNS)?;
    database.require_table("extra", EXTRA_COLUMNS)?;
    database.require_table("block", BLOCK_COLUMNS)?;
    database.require_table("tag", TAG_COLUMNS)?;
    database.require_table("route", ROUTE_COLUMNS)?;
    let routes = read_routes(&database)?;
    let tags = read_tags(&database)?;
    let mut rows = Rows(read_inodes(&database, &mut budget)?);
    rows.read_extra(&database, &mut budget)?;
    rows.read_blocks(&database, &mut budget)?;
    if database.has_table("xattr", XATTR_COLUMNS)? {
        rows.read_xattrs(&database, &mut budget)?;
    }
    if database.has_table("hardlink", HARDLINK_COLUMNS)? {
        rows.read_hardlinks(&database)?;
    }
    if database.has_table("time", TIME_COLUMNS)? {
        rows.read_times(&database)?;
    }
    Ok(Image { tree: rows.into_tree()?, cipher: BlockCipher::Aes256Gcm, routes, tags })
}

/// All rows of `inode` in ascending order of `ino`, with what other tables say of each.
struct Rows(Vec<Row>);

struct Row {
    ino: i64,
    parent: i64,
    name: Box<[u8]>,
    size: i64,
    uid: i64,
    gid: i64,
    mode: i64,
    rdev: i64,
    ctime: i64,
    mtime: i64,
    mtime_nanoseconds: u32,
    ctime_nanoseconds: u32,
    link_group: Option<i64>,
    extra: Option<Box<[u8]>>,
    blocks: Vec<BlockRef>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn read_inodes(database: &Database, budget: &mut Budget) -> Result<Vec<Row>, Fault> {
    let mut rows: Vec<Row> = Vec::with_capacity(count_inodes(database)?);
    let sql = "SELECT rowid, ino, parent, name, size, uid, gid, mode, rdev, ctime, mtime \
               FROM inode ORDER BY rowid";
    database.each(sql, |row| {
        let number = integer(row, 0).unwrap_or_default();
        let fault = |rule: String| Fault::row("inode", number, rule);
        let integer = |column: usize| {
            integer(row, column)
                .map_err(|rule| fault(format!("{} {rule}", INODE_COLUMNS[column - 1])))
        };
        let ino = integer(1)?;
        if ino < ROOT_INO || rows.last().is_some_and(|last| last.ino >= ino) {
            return Err(fault("ino must be the row's number, from 1 on".to_owned()));
        }
        if rows.len() >= INODE_COUNT_MAX {
            return Err(Fault::File(format!("more than {INODE_COUNT_MAX} inodes")));
        }
        let name = bytes(row, 3).map_err(|rule| fault(format!("name {rule}")))?;
        if name.len() > NAME_SIZE_MAX {
            return Err(fault(format!("name longer than {NAME_SIZE_MAX} bytes")));
        }
        budget.take(name.len())?;
        rows.push(Row {
            ino,
            parent: integer(2)?,
            name: name.into(),
            size: integer(4)?,
            uid: integer(5)?,
            gid: integer(6)?,
            mode: integer(7)?,
            rdev: integer(8)?,
            ctime: integer(9)?,
            mtime: integer(10)?,
            mtime_nanoseconds: 0,
            ctime_nanoseconds: 0,
            link_group: None,
            extra: None,
            blocks: Vec::new(),
            xattrs: BTreeMap::new(),
        });
        Ok(())
    })?;
    Ok(rows)
}

/// How many rows to make room for: what the table says, as far as the file can hold them.
fn count_inodes(database: &Database) -> Result<usize, Fault> {
    let mut count = 0;
    database.each("SELECT count(*) FROM inode", |row| {
        count = integer(row, 0).ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        Ok(())
    })?;
    Ok(count.min(INODE_COUNT_MAX).min(database.row_count_max()))
}

impl Rows {
    fn position(&self, ino: i64) -> Option<usize> {
        // Inode numbers of images that were packed in one go have no gaps.
        let guess = usize::try_from(ino.wrapping_sub(ROOT_INO)).ok()?;
        if self.0.get(guess).is_some_and(|row| row.ino == ino) {
            return Some(guess);
        }
        self.0.binary_search_by_key(&ino, |row| row.ino).ok()
    }

    /// The inode that row `number` of `table` speaks of.
    fn named(
        &mut self,
        table: &str,
        number: i64,
        ino: Result<i64, &str>,
    ) -> Result<&mut Row, Fault> {
        let ino = ino.map_err(|rule| Fault::row(table, number, format!("ino {rule}")))?;
        self.position(ino)
            .and_then(|position| self.0.get_mut(position))
            .ok_or_else(|| Fault::row(table, number, format!("there is no inode {ino}")))
    }

    /// Targets of symbolic links. What `extra` might hold of other inodes has no meaning yet.
    fn read_extra(&mut self, database: &Database, budget: &mut Budget) -> Result<(), Fault> {
        database.each("SELECT rowid, ino, data FROM extra ORDER BY rowid", |row| {
            let number = integer(row, 0).unwrap_or_default();
            let inode = self.named("extra", number, integer(row, 1))?;
            let data = bytes(row, 2)
                .map_err(|rule| Fault::row("extra", number, format!("data {rule}")))?;
            if data.len() > TARGET_SIZE_MAX {
                let rule = format!("data longer than {TARGET_SIZE_MAX} bytes");
                return Err(Fault::row("extra", number, rule));
            }
            budget.take(data.len())?;
            inode.extra = Some(data.into());
            Ok(())
        })
    }

    /// Blocks; a file's are in the order of their rows.
    fn read_blocks(&mut self, database: &Database, budget: &mut Budget) -> Result<(), Fault> {
        database.each("SELECT rowid, ino, id, key FROM block ORDER BY rowid", |row| {
            let number = integer(row, 0).unwrap_or_default();
            let hash = |column: usize, name: &str| {
                let hash = bytes(row, column).ok().and_then(|hash| hash.try_into().ok());
                hash.ok_or_else(|| Fault::row("block", number, format!("{name} must be 32 bytes")))
            };
            let block = BlockRef { id: BlockId(hash(2, "id")?), key: BlockKey(hash(3, "key")?) };
            budget.take(size_of::<BlockRef>())?;
            let blocks = &mut self.named("block", number, integer(row, 1))?.blocks;
            // Most files have one block, for which a vector would make room for four.
            if blocks.is_empty() {
                blocks.reserve_exact(1);
            }
            blocks.push(block);
            Ok(())
        })
    }

    fn read_xattrs(&mut self, database: &Database, budget: &mut Budget) -> Result<(), Fault> {
        database.each("SELECT rowid, ino, name, value FROM xattr ORDER BY rowid", |row| {
            let number = integer(row, 0).unwrap_or_default();
            let fault = |rule: &str| Fault::row("xattr", number, rule);
            let name = bytes(row, 2).map_err(fault)?;
            let value = bytes(row, 3).map_err(fault)?;
            if name.is_empty() || name.len() > XATTR_NAME_SIZE_MAX || name.contains(&0) {
                return Err(fault("name must be 1 to 255 bytes without NUL"));
            }
            if value.len() > XATTR_VALUE_SIZE_MAX {
                return Err(fault("value longer than 65536 bytes"));
            }
            budget.take(name.len() + value.len())?;
            let inode = self.named("xattr", number, integer(row, 1))?;
            if inode.xattrs.insert(name.to_vec(), value.to_vec()).is_some() {
                return Err(fault("a second attribute of that name"));
            }
            Ok(())
        })
    }

    fn read_hardlinks(&mut self, database: &Database) -> Result<(), Fault> {
        database.each("SELECT rowid, ino, link_group FROM hardlink ORDER BY rowid", |row| {
            let number = integer(row, 0).unwrap_or_default();
            let group = integer(row, 2)
                .map_err(|rule| Fault::row("hardlink", number, format!("link_group {rule}")))?;
            let inode = self.named("hardlink", number, integer(row, 1))?;
            if inode.link_group.replace(group).is_some() {
                return Err(Fault::row("hardlink", number, "a second group for this inode"));
            }
            Ok(())
        })
    }

    fn read_times(&mut self, database: &Database) -> Result<(), Fault> {
        let sql = "SELECT rowid, ino, mtime_nsec, ctime_nsec FROM time ORDER BY rowid";
        database.each(sql, |row| {
            let number = integer(row, 0).unwrap_or_default();
            let nanoseconds = |column: usize| {
                let value = integer(row, column).ok().filter(|value| *value < NANOSECONDS);
                value.and_then(|value| u32::try_from(value).ok()).ok_or_else(|| {
                    Fault::row("time", number, "nanoseconds must be from 0 to 999999999")
                })
            };
            let (mtime, ctime) = (nanoseconds(2)?, nanoseconds(3)?);
            let inode = self.named("time", number, integer(row, 1))?;
            inode.mtime_nanoseconds = mtime;
            inode.ctime_nanoseconds = ctime;
            Ok(())
        })
    }

    /// Grows the tree from the root; every row must be reached.
    fn into_tree(mut self) -> Result<Tree, Fault> {
        let children = self.children();
        let mut reached = vec![false; self.0.len()];
        let mut tree = self.root()?;
        tree.reserve(self.0.len());
        let mut groups = HashMap::new();
        let mut pending = vec![(0, InodeId::ROOT)];
        if let Some(root) = reached.first_mut() {
            *root = true;
        }
        while let Some((position, parent)) = pending.pop() {
            let parent_ino = self.0[position].ino;
            let first = children.partition_point(|(ino, _)| *ino < parent_ino);
            let below = children[first..].iter().take_while(|(ino, _)| *ino == parent_ino);
            for (_, position) in below {
                reached[*position] = true;
                let id = self.add(&mut tree, &mut groups, parent, *position)?;
                if tree.directory(id).is_some() {
                    pending.push((*position, id));
                }
            }
        }
        match reached.iter().position(|reached| !reached) {
            None => Ok(tree),
            Some(position) => Err(self.unreached(position)),
        }
    }

    /// `(parent, position)` of all rows but the root's, sorted.
    fn children(&self) -> Vec<(i64, usize)> {
        let mut children: Vec<_> =
            self.0.iter().enumerate().skip(1).map(|(at, row)| (row.parent, at)).collect();
        children.sort_unstable();
        children
    }

    fn root(&mut self) -> Result<Tree, Fault> {
        let Some(root) = self.0.first().filter(|row| row.ino == ROOT_INO) else {
            return Err(Fault::File("there is no inode 1, which is the root".to_owned()));
        };
        if root.parent != 0 || &*root.name != ROOT_NAME {
            return Err(Fault::at(b"", "the root must have parent 0 and the name \"/\""));
        }
        let inode = self.inode(0)?;
        if !matches!(inode.node, Node::Directory(_)) {
            return Err(Fault::at(b"", "the root must be a directory"));
        }
        let mut tree = Tree::new(inode.metadata);
        *tree.inode_mut(InodeId::ROOT) = inode;
        Ok(tree)
    }

    /// Enters the row at `position` into the tree, as a new inode or as a link to one.
    fn add(
        &mut self,
        tree: &mut Tree,
        groups: &mut HashMap<i64, InodeId>,
        parent: InodeId,
        position: usize,
    ) -> Result<InodeId, Fault> {
        let inode = self.inode(position)?;
        let name = std::mem::take(&mut self.0[position].name);
        let group = self.0[position].link_group;
        let refused = |this: &mut Self, name: Box<[u8]>, error: &crate::tree::TreeError| {
            this.0[position].name = name;
            Fault::tree(&this.path(position), error)
        };
        if let Some(first) = group.and_then(|group| groups.get(&group).copied()) {
            if *tree.inode(first) != inode {
                self.0[position].name = name;
                let rule = "differs from another name of the same hard link group";
                return Err(Fault::at(&self.path(position), rule));
            }
            tree.link(parent, &name, first).map_err(|error| refused(self, name.clone(), &error))?;
            self.0[position].name = name;
            return Ok(first);
        }
        let id = match tree.add(parent, &name, inode) {
            Ok(id) => id,
            Err(error) => return Err(refused(self, name, &error)),
        };
        self.0[position].name = name;
        if let Some(group) = group {
            if tree.directory(id).is_some() {
                return Err(Fault::at(&self.path(position), "a hard link to a directory"));
            }
            groups.insert(group, id);
        }
        Ok(id)
    }

    /// Checks what a row says and makes an inode of it; takes its blocks and attributes.
    fn inode(&mut self, position: usize) -> Result<Inode, Fault> {
        let fault = |rule: String| Fault::at(&self.path(position), rule);
        let row = &self.0[position];
        let id = |value: i64, what: &str| {
            u32::try_from(value)
                .map_err(|_| fault(format!("{what} {value} is not a 32-bit number")))
        };
        let mode = u32::try_from(row.mode)
            .ok()
            .filter(|mode| mode & !(TYPE_MASK | PERMISSION_MASK) == 0)
            .ok_or_else(|| fault(format!("mode {} has unknown bits", row.mode)))?;
        let metadata = Metadata {
            permissions: mode & PERMISSION_MASK,
            uid: id(row.uid, "uid")?,
            gid: id(row.gid, "gid")?,
            mtime: Timestamp { seconds: row.mtime, nanoseconds: row.mtime_nanoseconds },
            ctime: Timestamp { seconds: row.ctime, nanoseconds: row.ctime_nanoseconds },
        };
        let size =
            u64::try_from(row.size).map_err(|_| fault(format!("size {} is negative", row.size)))?;
        let node = node(row, mode, size).map_err(fault)?;
        let row = &mut self.0[position];
        let mut inode = Inode::new(metadata, node);
        inode.xattrs = std::mem::take(&mut row.xattrs);
        if let Node::File(contents) = &mut inode.node {
            contents.blocks = std::mem::take(&mut row.blocks);
            contents.blocks.shrink_to_fit();
        }
        Ok(inode)
    }

    /// A row's path, for messages; bounded, because rows may lie about their parents.
    fn path(&self, position: usize) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut next = self.0.get(position);
        while let Some(row) = next.filter(|row| row.ino != ROOT_INO) {
            names.push(&row.name);
            if names.len() > DEPTH_MAX as usize {
                names.push(b"...");
                break;
            }
            next = self.position(row.parent).and_then(|position| self.0.get(position));
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Why no path leads from the root to the row at `position`.
    fn unreached(&self, position: usize) -> Fault {
        let row = &self.0[position];
        let name = String::from_utf8_lossy(&row.name).escape_debug().to_string();
        let path = format!("inode {} ({name:?})", row.ino);
        let parent = self.position(row.parent).and_then(|position| self.0.get(position));
        let rule = match parent {
            None => format!("its parent, inode {}, does not exist", row.parent),
            Some(parent) if parent.mode & i64::from(TYPE_MASK) != 0o040_000 => {
                format!("its parent, inode {}, is not a directory", row.parent)
            }
            Some(_) => "not below the root: its parents form a ring or end nowhere".to_owned(),
        };
        Fault::Entry { path, rule }
    }
}

/// What kind of inode a row is. A file's blocks are counted here and taken by the caller.
fn node(row: &Row, mode: u32, size: u64) -> Result<Node, String> {
    let device = || {
        let rdev = row.rdev.cast_unsigned();
        DeviceNumber { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) }
    };
    let node = match mode & TYPE_MASK {
        0o010_000 => Node::Fifo,
        0o020_000 => Node::CharacterDevice(device()),
        0o040_000 => Node::Directory(Directory::with_size(size)),
        0o060_000 => Node::BlockDevice(device()),
        0o100_000 => Node::File(FileContents { size, blocks: Vec::new() }),
        0o120_000 => {
            let target =
                row.extra.as_ref().ok_or("a symbolic link without a target in \"extra\"")?;
            Node::Symlink(target.to_vec())
        }
        0o140_000 => Node::Socket,
        other => return Err(format!("mode {mode:#o}: unknown file type {other:#o}")),
    };
    let expected = if matches!(node, Node::File(_)) { size.div_ceil(BLOCK_SIZE.into()) } else { 0 };
    if row.blocks.len() as u64 != expected {
        return Err(format!(
            "{} blocks for {size} bytes, must be {expected} (a block for every {BLOCK_SIZE} bytes)",
            row.blocks.len(),
        ));
    }
    Ok(node)
}

fn read_routes(database: &Database) -> Result<Vec<Route>, Fault> {
    let mut routes = Vec::new();
    database.each("SELECT rowid, start, [end], url FROM route ORDER BY rowid", |row| {
        let number = integer(row, 0).unwrap_or_default();
        let fault = |rule: String| Fault::row("route", number, rule);
        if routes.len() >= ROUTE_COUNT_MAX {
            return Err(Fault::File(format!("more than {ROUTE_COUNT_MAX} routes")));
        }
        let byte =
            |column: usize| integer(row, column).ok().and_then(|value| u8::try_from(value).ok());
        let (Some(start), Some(end)) = (byte(1), byte(2)) else {
            return Err(fault("start and end must be from 0 to 255".to_owned()));
        };
        if start > end {
            return Err(fault(format!("starts at {start} and ends at {end}")));
        }
        let url = text(row, 3).map_err(|rule| fault(format!("url {rule}")))?;
        let url = StoreUrl::parse(url).map_err(|error| fault(error.to_string()))?;
        routes.push(Route { start, end, url });
        Ok(())
    })?;
    Ok(routes)
}

fn read_tags(database: &Database) -> Result<BTreeMap<String, String>, Fault> {
    let mut tags = BTreeMap::new();
    database.each("SELECT rowid, key, value FROM tag ORDER BY rowid", |row| {
        let fault = |rule: &str| Fault::row("tag", integer(row, 0).unwrap_or_default(), rule);
        let key = text(row, 1).map_err(fault)?;
        let value = text(row, 2).map_err(fault)?;
        if key.len() > TAG_KEY_SIZE_MAX || value.len() > TAG_VALUE_SIZE_MAX {
            return Err(fault("key longer than 255 or value longer than 65536 bytes"));
        }
        if tags.len() >= TAG_COUNT_MAX {
            return Err(Fault::File(format!("more than {TAG_COUNT_MAX} tags")));
        }
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(fault("a second tag of that key"));
        }
        Ok(())
    })?;
    Ok(tags)
}
