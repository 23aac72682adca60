//! Image files made to harm: each is refused with an error that names the file and the rule, in
//! bounded time, and none makes a tree.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use flist::format::Image;
use rusqlite::Connection;

/// No hostile file of this suite may take longer, in a debug build on a loaded machine.
const TIME_MAX: Duration = Duration::from_secs(30);

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/vectors/flist")
}

/// The message of the error that opening `path` must give.
fn refusal(path: &Path) -> String {
    let begin = Instant::now();
    let error = Image::open(path).err().unwrap_or_else(|| panic!("{}: opened", path.display()));
    assert!(begin.elapsed() < TIME_MAX, "{error}: took {:?}", begin.elapsed());
    let text = error.to_string();
    assert!(text.starts_with(&path.display().to_string()), "names the file: {text}");
    text
}

/// Applies `sql` to a copy of a good image (31 inodes; 4 is the directory `links`, 2 the file
/// `small.txt`) and returns what opening it says.
fn after(sql: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.fl");
    fs::copy(vectors().join("sharded.fl"), &path).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA writable_schema = ON;").unwrap();
    connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().unwrap();
    refusal(&path)
}

/// `(what is done to the image, what the error must say)`.
const HOSTILE_SQL: &[(&str, &str)] = &[
    // Schema.
    ("DROP TABLE inode", "no table \"inode\""),
    ("DROP TABLE block", "no table \"block\""),
    ("DROP TABLE route", "no table \"route\""),
    ("ALTER TABLE inode DROP COLUMN rdev", "no column \"rdev\""),
    (
        "ALTER TABLE inode RENAME TO real; CREATE VIEW inode AS SELECT * FROM real",
        "\"inode\" must be a plain table",
    ),
    (
        "DROP TABLE extra; CREATE TABLE extra (ino INTEGER PRIMARY KEY, data) WITHOUT ROWID",
        "\"extra\" must be a plain table",
    ),
    (
        "DROP TABLE tag; CREATE VIRTUAL TABLE tag USING fts5 (key, value)",
        "\"tag\" must be a plain table",
    ),
    (
        "DROP TABLE tag; CREATE TABLE tag (key, value GENERATED ALWAYS AS (zeroblob(1000000000)))",
        "generated or hidden column",
    ),
    ("DROP TABLE block; CREATE TABLE block (ino, id, key, rowid)", "generated or hidden column"),
    ("UPDATE sqlite_master SET sql = 'CREATE TABLE inode (' WHERE name = 'inode'", "database"),
    // The graph of directories.
    ("UPDATE inode SET parent = 4 WHERE ino = 4", "form a ring"),
    (
        "UPDATE inode SET parent = 31, mode = 16877, size = 0 WHERE ino = 4;
         UPDATE inode SET parent = 4, mode = 16877, size = 0 WHERE ino = 31;
         DELETE FROM block WHERE ino IN (4, 31)",
        "form a ring",
    ),
    ("UPDATE inode SET parent = 9999 WHERE ino = 5", "inode 9999, does not exist"),
    ("UPDATE inode SET parent = 2 WHERE ino = 5", "inode 2, is not a directory"),
    ("UPDATE inode SET parent = 0 WHERE ino = 5", "inode 0, does not exist"),
    ("UPDATE inode SET parent = 1 WHERE ino = 1", "the root must have parent 0"),
    ("UPDATE inode SET mode = 33188, size = 0 WHERE ino = 1", "the root must be a directory"),
    ("DELETE FROM inode WHERE ino = 1", "no inode 1"),
    ("DELETE FROM inode", "there is no inode"),
    ("UPDATE inode SET ino = -7 WHERE ino = 5", "from 1 on"),
    // Names.
    ("UPDATE inode SET name = '..' WHERE ino = 2", "not \".\" or \"..\""),
    ("UPDATE inode SET name = '.' WHERE ino = 2", "not \".\" or \"..\""),
    ("UPDATE inode SET name = '' WHERE ino = 2", "must be 1 to 255 bytes"),
    ("UPDATE inode SET name = '/etc/passwd' WHERE ino = 2", "without \"/\""),
    ("UPDATE inode SET name = '../../x' WHERE ino = 2", "without \"/\""),
    ("UPDATE inode SET name = CAST(x'610062' AS TEXT) WHERE ino = 2", "NUL"),
    ("UPDATE inode SET name = hex(zeroblob(128)) WHERE ino = 2", "name longer than 255"),
    ("UPDATE inode SET name = NULL WHERE ino = 2", "name must be text"),
    ("UPDATE inode SET name = 'zeros-1m' WHERE ino = 2", "a second entry of that name"),
    // Values.
    ("UPDATE inode SET size = 1 << 60 WHERE ino = 2", "blocks for 1152921504606846976 bytes"),
    ("UPDATE inode SET size = -1 WHERE ino = 2", "size -1 is negative"),
    ("UPDATE inode SET size = 524289 WHERE ino = 2", "1 blocks for 524289 bytes, must be 2"),
    ("UPDATE inode SET size = 0 WHERE ino = 2", "1 blocks for 0 bytes, must be 0"),
    ("UPDATE inode SET size = 1e300 WHERE ino = 2", "size must be an integer"),
    ("UPDATE inode SET uid = 'root' WHERE ino = 2", "uid must be an integer"),
    ("UPDATE inode SET uid = 1 << 32 WHERE ino = 2", "uid 4294967296 is not a 32-bit number"),
    ("UPDATE inode SET gid = -1 WHERE ino = 2", "gid -1 is not a 32-bit number"),
    ("UPDATE inode SET mode = 61440 + 420 WHERE ino = 2", "unknown file type"),
    ("UPDATE inode SET mode = 1 << 20 WHERE ino = 2", "unknown bits"),
    ("UPDATE inode SET mode = -1 WHERE ino = 2", "unknown bits"),
    ("UPDATE inode SET mode = 40960 + 511, size = 0 WHERE ino = 2", "without a target"),
    ("UPDATE extra SET data = zeroblob(4096)", "data longer than 4095"),
    ("UPDATE extra SET data = x'2f0061'", "link target must be"),
    ("UPDATE extra SET data = x''", "link target must be"),
    ("INSERT INTO extra VALUES (9999, x'61')", "no inode 9999"),
    // Blocks.
    ("DELETE FROM block WHERE ino = 2", "0 blocks for 12 bytes"),
    ("INSERT INTO block SELECT ino, id, key FROM block WHERE ino = 2", "2 blocks for 12 bytes"),
    ("UPDATE block SET ino = 4 WHERE ino = 2", "must be"),
    ("UPDATE block SET ino = 9999 WHERE ino = 2", "no inode 9999"),
    ("UPDATE block SET id = zeroblob(31) WHERE ino = 2", "id must be 32 bytes"),
    ("UPDATE block SET key = NULL WHERE ino = 2", "key must be 32 bytes"),
    // Routes and tags.
    ("UPDATE route SET [end] = 256", "from 0 to 255"),
    ("UPDATE route SET start = 9, [end] = 8", "starts at 9 and ends at 8"),
    ("UPDATE route SET url = 'gopher://x'", "table route"),
    ("UPDATE route SET url = zeroblob(10)", "url must be text"),
    (
        "INSERT INTO route WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
         WHERE i < 5000) SELECT 0, 255, 'dir:///x' FROM n",
        "more than 4096 routes",
    ),
    ("INSERT INTO tag VALUES ('k', zeroblob(10))", "table tag"),
    ("INSERT INTO tag VALUES ('k', hex(zeroblob(40000)))", "longer than"),
    // Our side tables.
    (
        "CREATE TABLE time (ino, mtime_nsec, ctime_nsec); INSERT INTO time VALUES (2, 1000000000, 0)",
        "from 0 to 999999999",
    ),
    (
        "CREATE TABLE time (ino, mtime_nsec, ctime_nsec); INSERT INTO time VALUES (2, -1, 0)",
        "from 0 to 999999999",
    ),
    (
        "CREATE TABLE xattr (ino, name, value); INSERT INTO xattr VALUES (2, 'user.a', zeroblob(65537))",
        "value longer than 65536",
    ),
    (
        "CREATE TABLE xattr (ino, name, value); INSERT INTO xattr VALUES (2, '', x'00')",
        "name must be 1 to 255",
    ),
    (
        "CREATE TABLE xattr (ino, name, value);
      INSERT INTO xattr VALUES (2, 'user.a', x'00'), (2, 'user.a', x'01')",
        "a second attribute of that name",
    ),
    (
        "CREATE TABLE hardlink (ino, link_group); INSERT INTO hardlink VALUES (2, 1), (3, 1)",
        "differs from another name",
    ),
    (
        "CREATE TABLE hardlink (ino, link_group); INSERT INTO hardlink VALUES (4, 1)",
        "a hard link to a directory",
    ),
    (
        "CREATE TABLE hardlink (ino, link_group); INSERT INTO hardlink VALUES (2, 1), (2, 2)",
        "a second group",
    ),
];

#[test]
fn every_broken_rule_is_named() {
    let mut wrong = String::new();
    for (sql, expected) in HOSTILE_SQL {
        let text = after(sql);
        if !text.contains(expected) {
            wrong += &format!("{sql}\n  said:     {text}\n  expected: {expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn an_error_names_the_path_inside_the_image_with_control_characters_escaped() {
    let text = after(
        "UPDATE inode SET name = 'l' || char(27) || '[2J' WHERE ino = 4;
                      UPDATE inode SET uid = -1 WHERE ino = 5",
    );
    assert!(text.contains(r#""/l\u{1b}[2J/hard-a": uid -1"#), "{text}");
}

#[test]
fn triggers_and_foreign_indexes_do_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.fl");
    fs::copy(vectors().join("sharded.fl"), &path).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER t AFTER INSERT ON inode BEGIN DELETE FROM inode; END;
             CREATE INDEX by_id ON block (id, key, ino);
             CREATE TABLE unknown (x); CREATE VIEW odd AS SELECT * FROM missing;",
        )
        .unwrap();
    connection.close().unwrap();
    assert_eq!(Image::open(&path).unwrap().tree.inodes().len(), 31);
}

#[test]
fn truncated_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sharded.fl", "legacy.flist"] {
        let good = fs::read(vectors().join(name)).unwrap();
        let path = folder.path().join(name);
        for step in 0..64 {
            fs::write(&path, &good[..good.len() * step / 64]).unwrap();
            refusal(&path);
        }
    }
}

#[test]
fn no_damaged_byte_harms_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sharded.fl", "legacy.flist"] {
        let good = fs::read(vectors().join(name)).unwrap();
        let path = folder.path().join(name);
        // A fixed sequence: the same 400 damages each time.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..400 {
            let mut bad = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let position = usize::try_from(state >> 33).unwrap() % bad.len();
                bad[position] = state.to_le_bytes()[3];
            }
            fs::write(&path, &bad).unwrap();
            let begin = Instant::now();
            if let Ok(image) = Image::open(&path) {
                assert!(image.tree.walk().len() < 1000);
            }
            assert!(begin.elapsed() < TIME_MAX);
        }
    }
}

/// Pages of a table that all name the same child: a small file that seems to have no end of rows.
#[test]
fn pages_that_share_children_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.fl");
    fs::copy(vectors().join("sharded.fl"), &path).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "INSERT INTO block WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
             WHERE i < 20000) SELECT 2, zeroblob(32), zeroblob(32) FROM n; VACUUM",
        )
        .unwrap();
    let root: u32 = connection
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'block'", [], |row| row.get(0))
        .unwrap();
    connection.close().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let page = usize::try_from(root - 1).unwrap() * 4096;
    assert_eq!(bytes[page], 5, "an interior page of a table");
    let cell_count = usize::from(u16::from_be_bytes([bytes[page + 3], bytes[page + 4]]));
    // Every child, the rightmost too, becomes the root itself.
    let root = root.to_be_bytes();
    bytes[page + 8..page + 12].copy_from_slice(&root);
    for cell in 0..cell_count {
        let pointer = page + 12 + 2 * cell;
        let offset = usize::from(u16::from_be_bytes([bytes[pointer], bytes[pointer + 1]]));
        bytes[page + offset..page + offset + 4].copy_from_slice(&root);
    }
    fs::write(&path, bytes).unwrap();
    refusal(&path);
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for bytes in [&b""[..], b"S", b"SQLite format 3", b"#!/bin/sh\n", &[0; 5000]] {
        fs::write(&path, bytes).unwrap();
        assert!(refusal(&path).contains("neither a .fl (SQLite) nor a .flist (gzip) image"));
    }
    fs::write(&path, b"SQLite format 3\0").unwrap();
    refusal(&path);
    fs::write(&path, [0x1f, 0x8b]).unwrap();
    refusal(&path);
    assert!(refusal(folder.path()).contains("not a regular file"));
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(refusal(&pipe).contains("not a regular file"));
    assert!(refusal(&folder.path().join("absent")).contains("cannot be read"));
}

/// A legacy image of these members.
fn legacy(members: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut gzip = GzEncoder::new(&mut out, Compression::fast());
    for (name, size, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(*size);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        gzip.write_all(header.as_bytes()).unwrap();
        gzip.write_all(bytes).unwrap();
        gzip.write_all(&vec![0; bytes.len().next_multiple_of(512) - bytes.len()]).unwrap();
    }
    gzip.write_all(&[0; 1024]).unwrap();
    gzip.finish().unwrap();
    out
}

fn legacy_refusal(members: &[(&str, u64, &[u8])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.flist");
    fs::write(&path, legacy(members)).unwrap();
    refusal(&path)
}

#[test]
fn bombs_and_odd_archives_are_refused() {
    let bomb = 1 << 40;
    assert!(legacy_refusal(&[("./flistdb.sqlite3", bomb, b"")]).contains("at most 268435456"));
    assert!(legacy_refusal(&[("./router.yaml", bomb, b"")]).contains("at most 1048576"));
    assert!(legacy_refusal(&[]).contains("no flistdb.sqlite3"));
    assert!(legacy_refusal(&[("../../etc/passwd", 1, b"x")]).contains("no flistdb.sqlite3"));
    let many = vec![("x", 0, &b""[..]); 100];
    assert!(legacy_refusal(&many).contains("more than 64 members"));
    let zeros = vec![0; 300 << 20];
    let text = legacy_refusal(&[("big", zeros.len() as u64, &zeros)]);
    assert!(text.contains("unpacks to more than"), "{text}");
    assert!(!legacy_refusal(&[("./flistdb.sqlite3", 600, &[7; 600])]).is_empty());
}

/// Changes the database of the legacy sample and returns what opening the result says.
fn legacy_after(change: impl FnOnce(&Connection)) -> String {
    let mut tar = Vec::new();
    let file = fs::File::open(vectors().join("legacy.flist")).unwrap();
    GzDecoder::new(file).read_to_end(&mut tar).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let mut database = Vec::new();
    for member in archive.entries().unwrap() {
        let mut member = member.unwrap();
        if member.path().unwrap().ends_with("flistdb.sqlite3") {
            member.read_to_end(&mut database).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database");
    fs::write(&path, database).unwrap();
    let connection = Connection::open(&path).unwrap();
    change(&connection);
    connection.close().unwrap();
    let database = fs::read(&path).unwrap();
    legacy_refusal(&[("./flistdb.sqlite3", database.len() as u64, &database)])
}

/// Replaces bytes in every entry that has them; the sizes must be equal.
fn replace(connection: &Connection, old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let mut select = connection.prepare("SELECT key, value FROM entries").unwrap();
    let rows: Vec<(String, Vec<u8>)> = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut found = false;
    for (key, mut value) in rows {
        for position in 0..value.len().saturating_sub(old.len() - 1) {
            if value[position..].starts_with(old) {
                value[position..position + old.len()].copy_from_slice(new);
                found = true;
            }
        }
        let update = "UPDATE entries SET value = ?2 WHERE key = ?1";
        connection.execute(update, (key, value)).unwrap();
    }
    assert!(found, "the sample has {old:?}");
}

#[test]
fn legacy_entries_that_lie_are_refused() {
    let sql = |text: &'static str| {
        move |connection: &Connection| {
            connection.execute_batch(text).unwrap();
        }
    };
    let swap = |old: &'static [u8], new: &'static [u8]| {
        move |connection: &Connection| {
            replace(connection, old, new);
        }
    };
    let check = |text: String, expected: &str| {
        assert!(text.contains(expected), "said: {text}\nexpected: {expected}");
    };
    check(legacy_after(sql("DROP TABLE entries")), "no table \"entries\"");
    check(legacy_after(sql("DELETE FROM entries")), "directory entry is missing");
    let no_access = "DELETE FROM entries WHERE length(key) = 16";
    check(legacy_after(sql(no_access)), "access entry is missing");
    let text = "UPDATE entries SET value = 'text' WHERE length(key) = 32";
    check(legacy_after(sql(text)), "not a Cap'n Proto message");
    check(legacy_after(sql("UPDATE entries SET value = x''")), "segment table");
    let short = "UPDATE entries SET value = substr(value, 1, length(value) - 16)";
    check(legacy_after(sql(short)), "segment table does not fit");
    check(legacy_after(swap(b"hard-a\0", b"ha/d-a\0")), "without \"/\"");
    check(legacy_after(swap(b"hard-a\0", b"hard-b\0")), "a second entry of that name");
    check(legacy_after(swap(b"hard-a\0", b"\0ard-a\0")), "NUL");
    let backend = "UPDATE metadata SET value = '{\"host\": 7}' WHERE key = 'backend'";
    check(legacy_after(sql(backend)), "must have a host or a socket");
    // Every directory's entry becomes the root's: the keys of its directories are those of paths
    // that would then stand elsewhere.
    let ring = "UPDATE entries SET value = (SELECT value FROM entries WHERE key = \
                'cae66941d9efbd404e4d88758ea67670') WHERE length(key) = 32";
    check(legacy_after(sql(ring)), "not the hash of its path");
}
