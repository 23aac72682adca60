//! The file of peers that ever had a session with this node, so that a restart does not make them
//! strangers: 64 hexadecimal digits a line.
//!
//! It appears whole or not at all. One that makes no sense ends the start: to go on without it would be
//! to talk in the old form with those that can do better.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use mycelium_wire::identity::{PublicKey, PublicKeyError};
use mycelium_wire::session::PROVED_COUNT_MAX;

/// Name of the file, in the folder for what outlives a restart.
const NAME: &str = "proved-peers";
/// Size of a line, in bytes.
const LINE_SIZE: usize = 65;

/// A file that is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvedError {
    /// It can't be read.
    #[error("{path}: can't be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can't be written.
    #[error("{path}: can't be written")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is no key.
    #[error("{path} line {line}: {source}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// Why.
        source: PublicKeyError,
    },
    /// It has more peers than a node remembers.
    #[error("{0}: more than {PROVED_COUNT_MAX} peers")]
    Large(PathBuf),
}

/// The file in `folder`, which is made if missing.
#[derive(Clone, Debug)]
pub(crate) struct ProvedFile(PathBuf);

impl ProvedFile {
    pub(crate) fn new(folder: &Path) -> Result<Self, ProvedError> {
        let path = folder.join(NAME);
        let failed = |source| ProvedError::Write { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        Ok(Self(path))
    }

    /// The peers in it; none when it is not there.
    pub(crate) fn read(&self) -> Result<Vec<PublicKey>, ProvedError> {
        let failed = |source| ProvedError::Read { path: self.0.clone(), source };
        let file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let size_max = LINE_SIZE * PROVED_COUNT_MAX;
        let mut text = String::new();
        file.take(size_max as u64 + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() > size_max {
            return Err(ProvedError::Large(self.0.clone()));
        }
        let parse = |(at, line): (usize, &str)| {
            let wrong = |source| ProvedError::Line { path: self.0.clone(), line: at + 1, source };
            line.parse().map_err(wrong)
        };
        text.lines().enumerate().map(parse).collect()
    }

    /// Replaces what is in it.
    pub(crate) fn write(&self, peers: &[PublicKey]) -> Result<(), ProvedError> {
        let failed = |source| ProvedError::Write { path: self.0.clone(), source };
        let temporary = self.0.with_extension("new");
        let mut file = File::create(&temporary).map_err(failed)?;
        let text: String = peers.iter().map(|peer| format!("{peer}\n")).collect();
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&temporary, &self.0).map_err(failed)?;
        let folder = self.0.parent().map(File::open).transpose().map_err(failed)?;
        folder.map_or(Ok(()), |folder| folder.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_as_they_were_written_and_nonsense_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = ProvedFile::new(&folder.path().join("state")).unwrap();
        assert!(file.read().unwrap().is_empty());
        let peers = [1, 2].map(|number| PublicKey::from_bytes([number; 32]));
        file.write(&peers).unwrap();
        assert_eq!(file.read().unwrap(), peers);
        file.write(&peers[..1]).unwrap();
        assert_eq!(file.read().unwrap(), peers[..1]);
        std::fs::write(&file.0, format!("{}\nxyz\n", peers[0])).unwrap();
        let error = file.read().unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        std::fs::write(&file.0, "0".repeat(LINE_SIZE * PROVED_COUNT_MAX + 1)).unwrap();
        assert!(matches!(file.read(), Err(ProvedError::Large(_))));
    }
}
