//! Hostile SQLite databases, opened so that they can do no more than hold rows.
//!
//! Both generations of images are SQLite files from strangers. A database can carry views and
//! triggers that run as code, virtual tables, pages that point at each other in a way that makes a
//! 100 KB file seem to hold 10^30 rows, and a schema that takes forever to parse. So:
//!
//! - read-only, immutable (no journal or WAL beside the file is looked at), no `mmap`, schema not
//!   trusted, no views, no triggers, limits on the size of values, statements and columns;
//! - tables that we read are plain tables with row ids and without generated columns, so that a
//!   scan `ORDER BY rowid` needs no sorter and runs no expression;
//! - a budget of virtual machine steps in proportion to the file's size ends every other trick.
//!
//! Callers bound what they keep with a [`Budget`] of bytes: honest rows are no larger than the file.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::error::Fault;

/// Longest value in a row, in bytes; must exceed every longest value that readers accept.
const VALUE_SIZE_MAX: i32 = 8 << 20;
/// Longest SQL text, of the schema too, in bytes.
const SQL_SIZE_MAX: i32 = 64 * 1024;
/// Most columns in a table.
const COLUMN_COUNT_MAX: i32 = 64;
/// Steps of SQLite's virtual machine that any file may take.
const STEPS_FLOOR: u64 = 1_000_000;
/// Steps for each byte of the file. An honest row takes about 25 steps and 60 bytes.
const STEPS_PER_BYTE: u64 = 8;
/// Steps between two looks at the budget.
const STEPS_AT_ONCE: i32 = 10_000;

/// Fewest bytes of a row of `inode`: a header byte for each column, and its place in the page.
const ROW_SIZE_MIN: u64 = 14;

/// An open database that nobody trusts.
pub(super) struct Database {
    connection: Connection,
    size: u64,
}

/// How many more bytes of rows a caller may keep.
pub(super) struct Budget {
    bytes: u64,
}

impl Database {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let size = std::fs::metadata(path).map_err(Fault::Read)?.len();
        let path = std::path::absolute(path).map_err(Fault::Read)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(immutable_uri(&path), flags)?;
        Self::restrict(connection, size)
    }

    /// Reads a database of `size` bytes into memory and opens it there.
    pub(super) fn from_reader(source: impl Read, size: u64) -> Result<Self, Fault> {
        let mut connection = Connection::open_in_memory()?;
        let length = usize::try_from(size)
            .map_err(|_| Fault::File(format!("a database of {size} bytes is too large")))?;
        connection.deserialize_read_exact("main", source, length, true)?;
        Self::restrict(connection, size)
    }

    fn restrict(mut connection: Connection, size: u64) -> Result<Self, Fault> {
        for (limit, value) in [
            (Limit::SQLITE_LIMIT_LENGTH, VALUE_SIZE_MAX),
            (Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_SIZE_MAX),
            (Limit::SQLITE_LIMIT_COLUMN, COLUMN_COUNT_MAX),
            (Limit::SQLITE_LIMIT_EXPR_DEPTH, 32),
            (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 2),
            (Limit::SQLITE_LIMIT_ATTACHED, 0),
            (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
            (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
        ] {
            connection.set_limit(limit, value)?;
        }
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        let mut steps = STEPS_FLOOR.saturating_add(size.saturating_mul(STEPS_PER_BYTE));
        let count = move || {
            steps = steps.saturating_sub(STEPS_AT_ONCE.unsigned_abs().into());
            steps == 0
        };
        connection.progress_handler(STEPS_AT_ONCE, Some(count))?;
        connection.execute_batch(
            "PRAGMA cell_size_check = ON; PRAGMA query_only = ON; PRAGMA mmap_size = 0;",
        )?;
        Ok(Self { connection, size })
    }

    /// More rows of a table with several columns than any file of this size can hold.
    pub(super) fn row_count_max(&self) -> usize {
        usize::try_from(self.size / ROW_SIZE_MIN).unwrap_or(usize::MAX)
    }

    /// A budget for keeping rows of this database.
    pub(super) fn budget(&self) -> Budget {
        Budget { bytes: self.size }
    }

    /// Whether there is a table `name`. If there is something of that name, it must be a plain table
    /// with row ids and at least `columns`.
    pub(super) fn has_table(&self, name: &str, columns: &[&str]) -> Result<bool, Fault> {
        let kind = "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
        let found: Option<(String, i64)> = self
            .connection
            .query_row(kind, [name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((kind, without_rowid)) = found else { return Ok(false) };
        if kind != "table" || without_rowid != 0 {
            return Err(Fault::File(format!("{name:?} must be a plain table with row ids")));
        }
        let mut statement =
            self.connection.prepare("SELECT name, hidden FROM pragma_table_xinfo(?1)")?;
        let present: Vec<(String, i64)> = statement
            .query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let shadows = |column: &str| column.eq_ignore_ascii_case("rowid");
        if present.iter().any(|(column, hidden)| *hidden != 0 || shadows(column)) {
            return Err(Fault::File(format!("table {name:?} has a generated or hidden column")));
        }
        for column in columns {
            if !present.iter().any(|(name, _)| name.eq_ignore_ascii_case(column)) {
                return Err(Fault::File(format!("table {name:?} has no column {column:?}")));
            }
        }
        Ok(true)
    }

    /// As [`Database::has_table`], for a table without which the file is no image.
    pub(super) fn require_table(&self, name: &str, columns: &[&str]) -> Result<(), Fault> {
        if self.has_table(name, columns)? {
            return Ok(());
        }
        Err(Fault::File(format!("not an flist: its database has no table {name:?}")))
    }

    /// Calls `each` for every row that `sql` finds.
    pub(super) fn each(
        &self,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(row)?;
        }
        Ok(())
    }
}

impl Budget {
    /// Takes `size` bytes of it.
    pub(super) fn take(&mut self, size: usize) -> Result<(), Fault> {
        let left = u64::try_from(size).ok().and_then(|size| self.bytes.checked_sub(size));
        self.bytes =
            left.ok_or_else(|| Fault::File("its rows are larger than the file".to_owned()))?;
        Ok(())
    }
}

/// The integer in `column`.
pub(super) fn integer(row: &Row<'_>, column: usize) -> Result<i64, &'static str> {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(value)) => Ok(value),
        _ => Err("must be an integer"),
    }
}

/// The bytes of the text or blob in `column`.
pub(super) fn bytes<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a [u8], &'static str> {
    match row.get_ref(column) {
        Ok(ValueRef::Text(value) | ValueRef::Blob(value)) => Ok(value),
        _ => Err("must be text or a blob"),
    }
}

/// The text in `column`.
pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a str, &'static str> {
    match row.get_ref(column) {
        Ok(ValueRef::Text(value)) => std::str::from_utf8(value).map_err(|_| "must be UTF-8"),
        _ => Err("must be text"),
    }
}

/// `file:` URI of an absolute path; every byte that could mean something is percent-encoded.
fn immutable_uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri.push_str("?immutable=1");
    uri
}
