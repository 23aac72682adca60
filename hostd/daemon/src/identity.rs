//! Who the node is: one seed of 32 bytes, from which all its keys come.
//!
//! It is made at the first start, and never again: a node with another seed is another node, and its
//! contracts and rewards stay with the old one. So it is kept in the state's folder and in every mirror,
//! and found again in any of them. What an existing Zero-OS node left (`seed.txt`, of format 1.0.0 or
//! 1.1.0) is taken over. Two different seeds are nobody's to choose from: that is an error.
//!
//! Nothing here has a security chip yet. So the file says of itself how it is protected: by nothing but
//! its permissions, and whoever reads it is this node.
//!
//! ```text
//! seed.json   {"format": "zos-node-seed-2", "protection": "file", "seed": "<64 hexadecimal digits>"}
//! seed.txt    "1.0.0" and 32 bytes, or "1.1.0"{"mnemonic": "<24 words>"}      (reference: zero-os 4.3)
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bip39::{Language, Mnemonic};
use hostd_node::StoreKey;
use hostd_rmb::identity::{Identity, IdentityError};
use hostd_rmb::signature::Scheme;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::files;

/// The file.
const FILE: &str = "seed.json";
/// The file of an existing node.
const OLD_FILE: &str = "seed.txt";
/// What the file is.
const FORMAT: &str = "zos-node-seed-2";
/// How it is protected.
const PROTECTION: &str = "file";
/// Largest file that is read, in bytes.
const FILE_SIZE_MAX: u64 = 4096;

/// A seed, wiped when dropped, and shown to nobody.
pub struct Seed(Zeroizing<[u8; 32]>);

/// Why a node is nobody.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A file can't be read or written.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that others could have read.
    #[error("{path} has mode {mode:03o}: others may read who this node is; make it 0600")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not such a file.
    #[error("{path} is no seed: {reason}")]
    Format {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Two that differ.
    #[error("{one} and {other} are seeds of two different nodes: remove the one that is not this")]
    Two {
        /// The first.
        one: PathBuf,
        /// The second.
        other: PathBuf,
    },
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes")]
    Random,
    /// A seed of which no keys come.
    #[error(transparent)]
    Keys(#[from] IdentityError),
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    protection: String,
    seed: String,
}

#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
struct OldMnemonic {
    mnemonic: String,
}

impl Seed {
    /// Finds the seed in `folder` or one of `mirrors`, makes one if it is in none, and writes it to those
    /// that lack it. A mirror that can't be read or written is no reason not to start.
    ///
    /// # Errors
    ///
    /// It can't be read, there are two, or it can't be written to `folder`.
    pub fn open(folder: &Path, mirrors: &[PathBuf]) -> Result<Self, SeedError> {
        let mut found: Option<(PathBuf, Self)> = None;
        let mut damage = None;
        for place in [folder].into_iter().chain(mirrors.iter().map(PathBuf::as_path)) {
            match read_one(place) {
                Ok(None) => {}
                Ok(Some((path, seed))) => match &found {
                    Some((one, first)) if first.0 != seed.0 => {
                        return Err(SeedError::Two { one: one.clone(), other: path });
                    }
                    Some(_) => {}
                    None => found = Some((path, seed)),
                },
                Err(error @ SeedError::Open { .. }) => return Err(error),
                Err(error) => {
                    warn!(error = %shown(&error), "a seed can't be read");
                    damage.get_or_insert(error);
                }
            }
        }
        let seed = match (found, damage) {
            (Some((path, seed)), _) => {
                info!(path = %path.display(), "this node's seed");
                seed
            }
            // A node that was somebody must not become somebody else by itself.
            (None, Some(damage)) => return Err(damage),
            (None, None) => {
                info!("this node is new");
                Self::random()?
            }
        };
        seed.keep(folder)?;
        for mirror in mirrors {
            if let Err(error) = seed.keep(mirror) {
                warn!(error = %shown(&error), "the seed is not mirrored");
            }
        }
        Ok(seed)
    }

    fn random() -> Result<Self, SeedError> {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *seed).map_err(|_| SeedError::Random)?;
        Ok(Self(seed))
    }

    /// The node's keys: an account of ed25519, as all nodes have.
    ///
    /// # Errors
    ///
    /// One seed in 2^127 has none.
    pub fn identity(&self) -> Result<Identity, SeedError> {
        Ok(Identity::from_seed(Scheme::Ed25519, &self.0)?)
    }

    /// What the node's deployments are sealed with.
    pub fn store_key(&self) -> StoreKey {
        StoreKey::from_seed(&self.0)
    }

    /// Writes it to a folder that does not have it.
    fn keep(&self, folder: &Path) -> Result<(), SeedError> {
        let path = folder.join(FILE);
        let error = |source| SeedError::Io { path: path.clone(), source };
        if path.exists() {
            return Ok(());
        }
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let (format, protection) = (FORMAT.to_owned(), PROTECTION.to_owned());
        let file = File { format, protection, seed: digits };
        let text = serde_json::to_vec(&file).map_err(|problem| error(problem.into()))?;
        files::write(&path, &Zeroizing::new(text)).map_err(error)
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(<secret>)")
    }
}

/// The seed of one folder, if it has one.
fn read_one(folder: &Path) -> Result<Option<(PathBuf, Seed)>, SeedError> {
    for (name, parse) in [(FILE, parse as fn(&[u8]) -> _), (OLD_FILE, parse_old)] {
        let path = folder.join(name);
        let error = |source| SeedError::Io { path: path.clone(), source };
        let Some(bytes) = files::read(&path, FILE_SIZE_MAX).map_err(error)? else { continue };
        let bytes = Zeroizing::new(bytes);
        let mode = fs::metadata(&path).map_err(error)?.mode() & 0o777;
        // Existing nodes have nobody else on them, and did not mind.
        if name == FILE && mode & 0o077 != 0 {
            return Err(SeedError::Open { path, mode });
        }
        let seed =
            parse(&bytes).map_err(|reason| SeedError::Format { path: path.clone(), reason })?;
        return Ok(Some((path, seed)));
    }
    Ok(None)
}

fn parse(bytes: &[u8]) -> Result<Seed, &'static str> {
    // Its errors could repeat what they read.
    let file: File = serde_json::from_slice(bytes).map_err(|_| "it is not such JSON")?;
    if file.format != FORMAT {
        return Err("its format is unknown");
    }
    if file.protection != PROTECTION {
        return Err("it is protected in a way that is unknown here");
    }
    let (pairs, rest) = file.seed.as_bytes().as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return Err("a seed has 64 digits");
    }
    let mut seed = Zeroizing::new([0; 32]);
    for (byte, pair) in seed.iter_mut().zip(pairs) {
        let digits = std::str::from_utf8(pair).ok().filter(|text| !text.starts_with('+'));
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        *byte = value.ok_or("its digits are not hexadecimal")?;
    }
    Ok(Seed(seed))
}

fn parse_old(bytes: &[u8]) -> Result<Seed, &'static str> {
    if let Some(rest) = bytes.strip_prefix(b"\"1.0.0\"") {
        // Some writers end the version's line.
        let raw = if rest.len() == 33 { rest.strip_prefix(b"\n").unwrap_or(rest) } else { rest };
        let seed = raw.try_into().map_err(|_| "a seed of format 1.0.0 has 32 bytes")?;
        return Ok(Seed(Zeroizing::new(seed)));
    }
    let rest = bytes.strip_prefix(b"\"1.1.0\"").ok_or("its format is unknown")?;
    let old: OldMnemonic =
        serde_json::from_slice(rest).map_err(|_| "a seed of format 1.1.0 has a mnemonic")?;
    let mnemonic = Mnemonic::parse_in_normalized(Language::English, old.mnemonic.trim());
    let mnemonic = Zeroizing::new(mnemonic.map_err(|_| "its mnemonic has a wrong word")?);
    let (entropy, size) = mnemonic.to_entropy_array();
    let entropy = Zeroizing::new(entropy);
    let seed = entropy[..size].try_into().map_err(|_| "its mnemonic does not have 24 words")?;
    Ok(Seed(Zeroizing::new(seed)))
}

/// An error with its causes.
fn shown(error: &SeedError) -> String {
    match error {
        SeedError::Io { path, source } => format!("{}: {source}", path.display()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn account(seed: &Seed) -> String {
        seed.identity().unwrap().account().to_string()
    }

    #[test]
    fn a_node_stays_who_it_is_as_long_as_one_copy_is_left() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mirrors = [two.path().to_owned()];
        let first = account(&Seed::open(one.path(), &mirrors).unwrap());
        assert_eq!(account(&Seed::open(one.path(), &[]).unwrap()), first);
        fs::remove_file(one.path().join(FILE)).unwrap();
        assert_eq!(account(&Seed::open(one.path(), &mirrors).unwrap()), first);
        fs::remove_file(two.path().join(FILE)).unwrap();
        assert_eq!(account(&Seed::open(one.path(), &mirrors).unwrap()), first);
        // A damaged copy is passed over as long as another is good.
        fs::write(one.path().join(FILE), b"{").unwrap();
        assert_eq!(account(&Seed::open(one.path(), &mirrors).unwrap()), first);
        // And a node with nothing but damage does not become another.
        assert!(matches!(Seed::open(one.path(), &[]), Err(SeedError::Format { .. })));
        // A mirror that is not there is no reason not to start.
        let absent = [one.path().join("absent")];
        Seed::open(two.path(), &absent).unwrap();
    }

    #[test]
    fn two_nodes_are_not_mixed_up() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Seed::open(one.path(), &[]).unwrap();
        Seed::open(two.path(), &[]).unwrap();
        let error = Seed::open(one.path(), &[two.path().to_owned()]).unwrap_err();
        assert!(matches!(error, SeedError::Two { .. }), "{error}");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Seed::open(folder.path(), &[]).unwrap();
        let path = folder.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Seed::open(folder.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("has mode 640: others may read who this node is"), "{error}");
    }

    #[test]
    fn existing_nodes_are_taken_over() {
        let raw = [&b"\"1.0.0\""[..], &[7; 32]].concat();
        let line = [&b"\"1.0.0\"\n"[..], &[7; 32]].concat();
        // The words whose entropy is 32 times 7.
        let mnemonic = Mnemonic::from_entropy(&[7; 32]).unwrap().to_string();
        let words = format!("\"1.1.0\"{{\"mnemonic\": \"{mnemonic}\"}}").into_bytes();
        let expected = Identity::from_seed(Scheme::Ed25519, &[7; 32]).unwrap().account();
        for bytes in [raw, line, words] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(OLD_FILE), bytes).unwrap();
            let seed = Seed::open(folder.path(), &[]).unwrap();
            assert_eq!(account(&seed), expected.to_string());
            // From then on it has a file of its own, which agrees with the old one.
            let file = parse(&fs::read(folder.path().join(FILE)).unwrap()).unwrap();
            assert_eq!(*file.0, [7; 32]);
        }
    }

    #[test]
    fn what_is_no_seed_is_said_without_repeating_it() {
        let secret = "abandon ability";
        for text in [
            "\"1.0.0\"short".to_owned(),
            "\"2.0.0\"".to_owned(),
            format!("\"1.1.0\"{{\"mnemonic\": \"{secret}\"}}"),
            format!("\"1.1.0\"{{\"words\": \"{secret}\"}}"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(OLD_FILE), text).unwrap();
            let error = Seed::open(folder.path(), &[]).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("is no seed") && !shown.contains("abandon"), "{shown}");
        }
        let seed = Seed(Zeroizing::new([7; 32]));
        assert_eq!(format!("{seed:?}"), "Seed(<secret>)");
    }
}
