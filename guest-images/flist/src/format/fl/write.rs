//! Writing `.fl`: rows in the order of the tree, so that equal images give equal files.
//!
//! The database grows under a temporary name beside the final one, in one transaction and without
//! SQLite's own journal; it gets the final name when its bytes are on the disk. A crash, an error or
//! a full disk leaves the final name as it was.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flist_view::block::{BLOCK_SIZE, BlockCipher};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Statement, ToSql, types::ToSqlOutput};

use super::super::error::FormatError;
use super::super::{Image, Route};
use super::{FORMAT_TAG, FORMAT_VALUE, PERMISSION_MASK, ROOT_INO, ROOT_NAME};
use crate::tree::{DeviceNumber, Entry, Inode, Node};

/// What becomes of user names, passwords and keys in the image's routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Secrets {
    /// Left away, so that the image can be given to others.
    #[default]
    Strip,
    /// Written: whoever has the image can write to its stores.
    Keep,
}

/// Writes `image` to `path`, replacing a file of that name at once and as a whole. Secrets in
/// routes are left away.
///
/// # Errors
/// As [`write_with`].
pub fn write(image: &Image, path: &Path) -> Result<(), FormatError> {
    write_with(image, path, Secrets::Strip)
}

/// As [`write()`], with a choice about secrets.
///
/// # Errors
/// [`FormatError::Write`] if the disk is full or the folder is not ours to write;
/// [`FormatError::File`] or [`FormatError::Entry`] if the format can't hold the image (a legacy
/// cipher, a file without all its blocks). Nothing is left behind.
pub fn write_with(image: &Image, path: &Path, secrets: Secrets) -> Result<(), FormatError> {
    check(image, path)?;
    let error = |source| FormatError::Write { file: path.to_owned(), source };
    let folder = folder_of(path);
    let temporary = tempfile::Builder::new()
        .prefix(".flist-")
        .suffix(".partial")
        // Less the umask, as for any file that a person asks for.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(&folder)
        .map_err(error)?;
    let written = fill(image, temporary.path(), secrets);
    written.map_err(|cause| error(database_error(&cause, &folder)))?;
    temporary.as_file().sync_all().map_err(error)?;
    temporary.persist(path).map_err(|cause| error(cause.error))?;
    File::open(&folder).and_then(|folder| folder.sync_all()).map_err(error)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// What the format can't hold.
fn check(image: &Image, path: &Path) -> Result<(), FormatError> {
    let file = path.to_owned();
    if image.cipher != BlockCipher::Aes256Gcm {
        let rule = "blocks of a legacy image can't be named in a .fl image".to_owned();
        return Err(FormatError::File { file, rule });
    }
    for entry in image.tree.walk() {
        let Node::File(contents) = &image.tree.inode(entry.id).node else { continue };
        let expected = contents.size.div_ceil(BLOCK_SIZE.into());
        if contents.blocks.len() as u64 != expected || i64::try_from(contents.size).is_err() {
            let path = format!("\"/{}\"", String::from_utf8_lossy(&entry.path).escape_debug());
            let rule = format!(
                "{} blocks for {} bytes, must be {expected}",
                contents.blocks.len(),
                contents.size
            );
            return Err(FormatError::Entry { file, path, rule });
        }
    }
    Ok(())
}

/// SQLite says "disk is full" in its own words; `ENOSPC` and its kin are what people search for.
fn database_error(error: &rusqlite::Error, folder: &Path) -> io::Error {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => io::Error::from(io::ErrorKind::StorageFull),
        _ => io::Error::other(format!("in {}: {error}", folder.display())),
    }
}

fn fill(image: &Image, path: &Path, secrets: Secrets) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         PRAGMA locking_mode = EXCLUSIVE; PRAGMA encoding = 'UTF-8'; BEGIN EXCLUSIVE;",
    )?;
    connection.execute_batch(TABLES)?;
    write_tags(&connection, image)?;
    write_routes(&connection, &image.routes, secrets)?;
    write_tree(&connection, image)?;
    connection.execute_batch(INDEXES)?;
    connection.execute_batch("COMMIT")?;
    connection.close().map_err(|(_, error)| error)
}

fn write_tags(connection: &Connection, image: &Image) -> rusqlite::Result<()> {
    let mut insert = connection.prepare("INSERT INTO tag (key, value) VALUES (?1, ?2)")?;
    for (key, value) in image.tags.iter().filter(|(key, _)| *key != FORMAT_TAG) {
        insert.execute([key, value])?;
    }
    insert.execute([FORMAT_TAG, FORMAT_VALUE])?;
    Ok(())
}

fn write_routes(
    connection: &Connection,
    routes: &[Route],
    secrets: Secrets,
) -> rusqlite::Result<()> {
    let mut insert =
        connection.prepare("INSERT INTO route (start, [end], url) VALUES (?1, ?2, ?3)")?;
    for route in routes {
        let url = route.url.to_stored(secrets == Secrets::Strip);
        insert.execute((route.start, route.end, url))?;
    }
    Ok(())
}

/// The statements that one row of the tree may need.
struct Inserts<'a> {
    inode: Statement<'a>,
    extra: Statement<'a>,
    block: Statement<'a>,
    xattr: Statement<'a>,
    hardlink: Statement<'a>,
    time: Statement<'a>,
}

/// Rows for all entries; inode numbers count them in the order of [`Tree::walk`].
///
/// [`Tree::walk`]: crate::tree::Tree::walk
fn write_tree(connection: &Connection, image: &Image) -> rusqlite::Result<()> {
    let mut inserts = Inserts {
        inode: connection
            .prepare("INSERT INTO inode VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?,
        extra: connection.prepare("INSERT INTO extra VALUES (?1, ?2)")?,
        block: connection.prepare("INSERT INTO block VALUES (?1, ?2, ?3)")?,
        xattr: connection.prepare("INSERT INTO xattr VALUES (?1, ?2, ?3)")?,
        hardlink: connection.prepare("INSERT INTO hardlink VALUES (?1, ?2)")?,
        time: connection.prepare("INSERT INTO time VALUES (?1, ?2, ?3)")?,
    };
    let links = image.tree.link_counts();
    // The row that an inode was first written as; 0 for none yet.
    let mut first_row = vec![0i64; image.tree.inodes().len()];
    for (ino, entry) in (ROOT_INO..).zip(image.tree.walk()) {
        let inode = image.tree.inode(entry.id);
        let at = entry.id.index();
        if first_row[at] == 0 {
            first_row[at] = ino;
        }
        let parent = if ino == ROOT_INO { 0 } else { first_row[entry.parent.index()] };
        inserts.row(ino, parent, name_of(&entry), inode)?;
        if links[at] > 1 && !matches!(inode.node, Node::Directory(_)) {
            inserts.hardlink.execute([ino, first_row[at]])?;
        }
    }
    Ok(())
}

fn name_of(entry: &Entry) -> &[u8] {
    if entry.path.is_empty() {
        return ROOT_NAME;
    }
    entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

impl Inserts<'_> {
    /// Everything about one entry but its hard link group.
    fn row(&mut self, ino: i64, parent: i64, name: &[u8], inode: &Inode) -> rusqlite::Result<()> {
        let metadata = &inode.metadata;
        let (size, rdev) = size_and_device(&inode.node);
        self.inode.execute((
            ino,
            parent,
            Text(name),
            size.cast_signed(),
            metadata.uid,
            metadata.gid,
            inode.node.file_type() | (metadata.permissions & PERMISSION_MASK),
            rdev.cast_signed(),
            metadata.ctime.seconds,
            metadata.mtime.seconds,
        ))?;
        match &inode.node {
            Node::Symlink(target) => {
                self.extra.execute((ino, target))?;
            }
            Node::File(contents) => {
                for block in &contents.blocks {
                    self.block.execute((ino, block.id.0, block.key.0))?;
                }
            }
            _ => {}
        }
        for (name, value) in &inode.xattrs {
            self.xattr.execute((ino, Text(name), value))?;
        }
        let (mtime, ctime) = (metadata.mtime.nanoseconds, metadata.ctime.nanoseconds);
        if (mtime, ctime) != (0, 0) {
            self.time.execute((ino, mtime, ctime))?;
        }
        Ok(())
    }
}

/// `st_size` and `st_rdev` as `stat` would show them.
fn size_and_device(node: &Node) -> (u64, u64) {
    let number = |device: &DeviceNumber| rustix::fs::makedev(device.major, device.minor);
    match node {
        Node::Directory(directory) => (directory.size, 0),
        Node::File(contents) => (contents.size, 0),
        Node::Symlink(target) => (target.len() as u64, 0),
        Node::CharacterDevice(device) | Node::BlockDevice(device) => (0, number(device)),
        Node::Fifo | Node::Socket => (0, 0),
    }
}

/// TEXT if it is UTF-8, else BLOB.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = if std::str::from_utf8(self.0).is_ok() {
            ValueRef::Text(self.0)
        } else {
            ValueRef::Blob(self.0)
        };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// Upstream's five tables (types and keys as theirs), then ours.
const TABLES: &str = "
CREATE TABLE inode (ino INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER, name VARCHAR(255),
    size INTEGER, uid INTEGER, gid INTEGER, mode INTEGER, rdev INTEGER, ctime INTEGER,
    mtime INTEGER);
CREATE TABLE extra (ino INTEGER PRIMARY KEY, data VARCHAR(4096));
CREATE TABLE block (ino INTEGER, id VARCHAR(32), key VARCHAR(32));
CREATE TABLE tag (key VARCHAR(10) PRIMARY KEY, value VARCHAR(255));
CREATE TABLE route (start INTEGER, end INTEGER, url VARCHAR(2048));
CREATE TABLE xattr (ino INTEGER, name VARCHAR(255), value BLOB);
CREATE TABLE hardlink (ino INTEGER PRIMARY KEY, link_group INTEGER);
CREATE TABLE time (ino INTEGER PRIMARY KEY, mtime_nsec INTEGER, ctime_nsec INTEGER);
";

/// Upstream's indexes; made after the rows, which is faster and packs their pages.
const INDEXES: &str = "
CREATE INDEX parents ON inode (parent);
CREATE INDEX names ON inode (name);
CREATE INDEX block_ino ON block (ino);
";
