//! Following a file that another process writes to, and rotates: `log` becomes `log.1`, a new `log`
//! begins.
//!
//! A file that was rotated is read to its end first: it stays open. When more than one file was
//! rotated away meanwhile, what is missing is said in place of it. A log that is not there yet is waited
//! for; a folder that is no more is an error, since nothing will ever come in it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Bytes of one piece.
pub(super) const PIECE_SIZE_MAX: usize = 32 << 10;
/// Bytes of a log's end that are sent first.
const FIRST_SIZE_MAX: u64 = 8 << 10;
/// What is sent in place of what is missing.
const MISSING: &[u8] = b"\n[some of the log was rotated away before it could be sent]\n";

/// A file that is followed.
pub(super) struct Tail {
    path: PathBuf,
    file: Option<Followed>,
    /// Where to begin in the first file.
    is_first: bool,
    /// Bytes of the last piece; those of the file among them.
    last: usize,
    is_missing: bool,
}

struct Followed {
    file: File,
    inode: (u64, u64),
    offset: u64,
}

impl Tail {
    /// Follows a file, from a little before its end.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, is_first: true, last: 0, is_missing: false }
    }

    /// What comes next: nothing, if nothing is there yet. The same again, or more, until it is
    /// [taken](Self::taken).
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        if self.file.is_none() && !self.begin()? {
            return Ok(Vec::new());
        }
        let piece = self.piece()?;
        if !piece.is_empty() || !self.is_rotated()? {
            return Ok(piece);
        }
        // It may have grown before it was rotated, and does not grow any more.
        let piece = self.piece()?;
        if !piece.is_empty() {
            return Ok(piece);
        }
        // The one before the newest is the one that was read to its end, or there were more.
        let before = std::fs::metadata(previous(&self.path)).ok().as_ref().map(identity);
        let read = self.file.take().map(|followed| followed.inode);
        self.is_missing = before != read;
        if self.begin()? { self.piece() } else { Ok(Vec::new()) }
    }

    /// The last piece has arrived.
    pub(super) fn taken(&mut self) {
        if let Some(followed) = &mut self.file {
            followed.offset += self.last as u64;
        }
        self.is_missing &= self.last == 0;
        self.last = 0;
    }

    fn piece(&mut self) -> io::Result<Vec<u8>> {
        self.last = 0;
        let Some(followed) = &mut self.file else { return Ok(Vec::new()) };
        if followed.file.metadata()?.len() < followed.offset {
            // Somebody emptied it.
            followed.offset = 0;
        }
        let mut bytes = vec![0; PIECE_SIZE_MAX];
        let size = followed.file.read_at(&mut bytes, followed.offset)?;
        bytes.truncate(size);
        self.last = size;
        if self.is_missing && size > 0 {
            bytes.splice(0..0, MISSING.iter().copied());
        }
        Ok(bytes)
    }

    /// Whether another file has the name of the one that is read.
    fn is_rotated(&self) -> io::Result<bool> {
        let Some(followed) = &self.file else { return Ok(false) };
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(identity(&metadata) != followed.inode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_folder()?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the file that has the name now. False if there is none.
    fn begin(&mut self) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_folder()?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let offset = if self.is_first { metadata.len().saturating_sub(FIRST_SIZE_MAX) } else { 0 };
        self.is_first = false;
        self.file = Some(Followed { file, inode: identity(&metadata), offset });
        Ok(true)
    }

    fn check_folder(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or_else(|| Path::new("/"));
        if std::fs::metadata(folder)?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its folder is no more"));
        }
        Ok(())
    }
}

/// What a log is called when it is not the newest any more.
fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    /// A log that is written and rotated.
    pub(in super::super) struct Log {
        folder: tempfile::TempDir,
    }

    impl Log {
        pub(in super::super) fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        pub(in super::super) fn path(&self) -> PathBuf {
            self.folder.path().join("console.log")
        }

        pub(in super::super) fn write(&self, text: &str) {
            let mut options = File::options();
            let mut file = options.create(true).append(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self) {
            fs::rename(self.path(), self.path().with_extension("log.1")).unwrap();
        }
    }

    fn next(tail: &mut Tail) -> String {
        let piece = tail.read().unwrap();
        tail.taken();
        String::from_utf8(piece).unwrap()
    }

    #[test]
    fn a_log_is_followed_through_its_rotation_and_nothing_is_lost() {
        let log = Log::new();
        let mut tail = Tail::new(log.path());
        assert_eq!(next(&mut tail), "");
        log.write("one\n");
        // Until it is taken, it comes again, with what came since.
        assert_eq!(tail.read().unwrap(), b"one\n");
        log.write("two\n");
        assert_eq!(next(&mut tail), "one\ntwo\n");
        log.write("three\n");
        log.rotate();
        assert_eq!(next(&mut tail), "three\n");
        assert_eq!(next(&mut tail), "");
        log.write("four\n");
        assert_eq!(next(&mut tail), "four\n");
    }

    #[test]
    fn what_was_rotated_away_is_said_to_be_missing() {
        let log = Log::new();
        let mut tail = Tail::new(log.path());
        log.write("one\n");
        assert_eq!(tail.read().unwrap(), b"one\n");
        for text in ["two\n", "three\n", "four\n"] {
            log.rotate();
            log.write(text);
        }
        assert_eq!(next(&mut tail), "one\n");
        let text = next(&mut tail);
        assert!(text.contains("rotated away") && text.ends_with("four\n"), "{text}");
        log.write("five\n");
        assert_eq!(next(&mut tail), "five\n");
    }

    #[test]
    fn a_long_log_begins_near_its_end_and_comes_in_pieces() {
        let log = Log::new();
        log.write(&"x".repeat(100_000));
        let mut tail = Tail::new(log.path());
        assert_eq!(next(&mut tail).len() as u64, FIRST_SIZE_MAX);
        log.write(&"y".repeat(PIECE_SIZE_MAX + 5));
        assert_eq!(next(&mut tail).len(), PIECE_SIZE_MAX);
        assert_eq!(next(&mut tail), "yyyyy");
        // Emptied by somebody: it begins anew.
        fs::write(log.path(), "z").unwrap();
        assert_eq!(next(&mut tail), "z");
    }

    #[test]
    fn a_folder_that_is_gone_is_an_error() {
        let log = Log::new();
        let mut tail = Tail::new(log.path());
        let path = log.folder.path().to_owned();
        drop(log);
        assert!(!path.exists());
        assert!(tail.read().is_err());
    }
}
