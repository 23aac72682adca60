//! The tables in a file, so that a start need not read all events again.
//!
//! The file belongs to one chain and one block of it. Of another chain, of a block that the chain does not
//! have, of another version of this program, or damaged: it is passed over, as if there were none.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::Tables;

/// The file, in the directory of the grid.
pub(crate) const FILE: &str = "index.json";
/// The version of what stands in it. Whoever changes a row changes this.
const FORMAT: u32 = 1;

/// A hash of the chain.
type Hash = [u8; 32];

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    genesis: Hash,
    /// Of the block that the tables are of.
    block: Hash,
}

/// Saves the tables as they are after the block with the hash `block`.
pub(crate) fn save(folder: &Path, genesis: Hash, block: Hash, tables: &Tables) -> io::Result<()> {
    let temporary = folder.join(format!("{FILE}.new"));
    let mut file = BufWriter::new(File::create(&temporary)?);
    serde_json::to_writer(&mut file, &(Head { format: FORMAT, genesis, block }, tables))?;
    file.flush()?;
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    std::fs::rename(temporary, folder.join(FILE))
}

/// The tables that were saved, if they are of a block of this chain.
pub(crate) fn load(
    folder: &Path,
    genesis: Hash,
    hash_of: impl Fn(u32) -> Option<Hash>,
) -> Option<Tables> {
    let file = File::open(folder.join(FILE)).ok()?;
    match serde_json::from_reader::<_, (Head, Tables)>(BufReader::new(file)) {
        Ok((head, tables)) => {
            let is_ours = head.format == FORMAT
                && head.genesis == genesis
                && hash_of(tables.block) == Some(head.block);
            is_ours.then_some(tables)
        }
        Err(error) => {
            info!(%error, "the saved index is passed over");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::tables;
    use super::*;

    const GENESIS: Hash = [1; 32];
    const BLOCK: Hash = [2; 32];

    #[test]
    fn what_was_saved_is_loaded_for_the_same_chain_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let number = tables().block;
        let hash_of = |asked| (asked == number).then_some(BLOCK);
        assert_eq!(load(folder, GENESIS, hash_of), None);
        save(folder, GENESIS, BLOCK, &tables()).unwrap();
        assert_eq!(load(folder, GENESIS, hash_of), Some(tables()));
        assert_eq!(load(folder, [9; 32], hash_of), None, "another chain");
        assert_eq!(load(folder, GENESIS, |_| Some([9; 32])), None, "another block");
        assert_eq!(load(folder, GENESIS, |_| None), None, "no such block");
    }

    #[test]
    fn a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), GENESIS, BLOCK, &tables()).unwrap();
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in ["", &text[..text.len() / 2], &text.replace("\"Gold\"", "\"Lead\"")] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(folder.path(), GENESIS, |_| Some(BLOCK)), None, "{damaged:.20}");
        }
    }
}
