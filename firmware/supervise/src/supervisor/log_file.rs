//! A log file that begins anew when it is full.
//!
//! ```text
//!   path.2 ──> path.3 (the oldest is removed)
//!   path.1 ──> path.2
//!   path   ──> path.1
//!              path, empty
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::program::Log;

/// An open log.
#[derive(Debug)]
pub(super) struct LogFile {
    log: Log,
    file: File,
    size: u64,
}

impl LogFile {
    /// Opens a log and goes on behind what is there.
    pub(super) fn open(log: &Log) -> io::Result<Self> {
        let file = open(log)?;
        let size = file.metadata()?.len();
        Ok(Self { log: log.clone(), file, size })
    }

    /// Appends bytes, beginning new files as needed.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.size >= self.log.size_max {
                self.rotate()?;
            }
            let room = usize::try_from(self.log.size_max - self.size).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(until_line_end(bytes, room, self.size == 0));
            self.file.write_all(now)?;
            self.size += now.len() as u64;
            if !later.is_empty() {
                self.rotate()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (0..self.log.kept).rev() {
            match fs::rename(self.path(number), self.path(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.log.kept == 0 {
            fs::remove_file(&self.log.path)?;
        }
        self.file = open(&self.log)?;
        self.size = 0;
        Ok(())
    }

    fn path(&self, number: u32) -> PathBuf {
        let mut path = self.log.path.clone().into_os_string();
        if number > 0 {
            path.push(format!(".{number}"));
        }
        path.into()
    }
}

/// How many of the bytes go into a file with so much room: all, or up to the last line's end that fits. A
/// line that does not fit begins the next file, and is cut where even that is too small for it.
fn until_line_end(bytes: &[u8], room: usize, is_empty: bool) -> usize {
    if bytes.len() <= room {
        return bytes.len();
    }
    let fitting = bytes.get(..room).unwrap_or(bytes);
    let uncut = fitting.iter().rposition(|byte| *byte == b'\n').map(|position| position + 1);
    uncut.unwrap_or(if is_empty { room } else { 0 })
}

/// A log holds what users' programs say: for the node alone. Whatever is there instead of a file is not
/// waited for.
fn open(log: &Log) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    File::options().create(true).append(true).mode(0o600).custom_flags(flags).open(&log.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &tempfile::TempDir, kept: u32) -> Log {
        Log { path: folder.path().join("log"), size_max: 16, kept }
    }

    fn texts(folder: &tempfile::TempDir) -> Vec<(String, String)> {
        let mut texts: Vec<(String, String)> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        texts.sort();
        texts
    }

    #[test]
    fn lines_stay_whole_and_so_many_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(&log(&folder, 2)).unwrap();
        for number in 0..8 {
            file.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        let expected = [
            ("log", "line 6\nline 7\n"),
            ("log.1", "line 4\nline 5\n"),
            ("log.2", "line 2\nline 3\n"),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(texts(&folder), expected);
    }

    #[test]
    fn a_line_longer_than_a_file_is_cut_and_an_old_log_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 1);
        LogFile::open(&log).unwrap().append(b"before\n").unwrap();
        LogFile::open(&log).unwrap().append(&[b'x'; 40]).unwrap();
        let all = texts(&folder);
        assert!(all.iter().all(|(_, text)| text.len() <= 16), "{all:?}");
        assert_eq!((all[0].1.len(), all[1].1.len()), (8, 16));
    }

    #[test]
    fn without_old_files_it_is_emptied_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let none = log(&folder, 0);
        let mut file = LogFile::open(&none).unwrap();
        (0..9).for_each(|_| file.append(b"line ten ch\n").unwrap());
        assert_eq!(texts(&folder).len(), 1);
        let link = Log { path: folder.path().join("link"), ..none };
        std::os::unix::fs::symlink("/etc/passwd", &link.path).unwrap();
        assert!(LogFile::open(&link).is_err());
    }
}
