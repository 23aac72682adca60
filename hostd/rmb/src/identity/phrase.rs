//! From what a user types to a seed: mnemonics, hex, derivation paths.
//!
//! The syntax is that of Substrate's secret URIs, less soft junctions: they lead to an sr25519 key
//! without a seed, and without a seed there is no encryption key.
//!
//! ```text
//!  [ words | 0x and 64 hex digits ] { //junction } [ ///password ]
//! ```

use bip39::{Language, Mnemonic};
use blake2b_simd::Params;
use ring::pbkdf2;
use schnorrkel::MiniSecretKey;
use schnorrkel::derive::ChainCode;
use zeroize::{Zeroize, Zeroizing};

use super::{SEED_SIZE, Seed, sr25519};
use crate::signature::Scheme;

/// What paths without a mnemonic start from; public knowledge, for development chains alone.
const DEVELOPMENT_PHRASE: &str =
    "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
/// Longest text that is looked at, in bytes.
const PHRASE_SIZE_MAX: usize = 1024;
/// Most junctions of a path.
const JUNCTION_COUNT_MAX: usize = 16;
/// Rounds of PBKDF2 (BIP-39).
const PBKDF2_ROUNDS: std::num::NonZeroU32 = std::num::NonZeroU32::new(2048).expect("not 0");
/// Bytes that PBKDF2 makes; the first half is the seed.
const PBKDF2_SIZE: usize = 64;
/// What ed25519's hard derivation hashes first, with its SCALE length.
const ED25519_DERIVATION: &[u8] = b"\x2cEd25519HDKD";

/// Why a text is no secret. Nothing of the text is repeated.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum PhraseError {
    /// Longer than anything that makes sense.
    #[error("a secret has at most {PHRASE_SIZE_MAX} bytes, this one {0}")]
    TooLong(usize),
    /// Neither 12, 15, 18, 21 nor 24 words.
    #[error("a mnemonic has 12, 15, 18, 21 or 24 words, this one {0}")]
    WordCount(usize),
    /// A word that is on no list.
    #[error("word {0} of the mnemonic is not an English BIP-39 word")]
    UnknownWord(usize),
    /// Words that are fine, but not together.
    #[error("the mnemonic's checksum is wrong: a word is wrong or out of place")]
    Checksum,
    /// `0x` and something else than 64 hex digits.
    #[error("a seed is 0x and 64 hex digits")]
    Hex,
    /// A junction with a single slash.
    #[error("soft junctions (/x) lead to no seed; hard ones (//x) do")]
    SoftJunction,
    /// Too many junctions.
    #[error("a path has at most {JUNCTION_COUNT_MAX} junctions")]
    TooManyJunctions,
    /// A password on a seed, which has none.
    #[error("a password (///…) belongs to a mnemonic, not to a seed")]
    Password,
}

/// The seed that `phrase` stands for.
pub(super) fn seed(scheme: Scheme, phrase: &str) -> Result<Seed, PhraseError> {
    let phrase = phrase.trim();
    if phrase.len() > PHRASE_SIZE_MAX {
        return Err(PhraseError::TooLong(phrase.len()));
    }
    let (rest, password) = match phrase.split_once("///") {
        Some((rest, password)) => (rest, Some(password)),
        None => (phrase, None),
    };
    let (root, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let mut seed = match (root.trim(), password) {
        (root, Some(_)) if root.starts_with("0x") => return Err(PhraseError::Password),
        (root, None) if root.starts_with("0x") => hex_seed(root)?,
        ("", password) => mnemonic_seed(DEVELOPMENT_PHRASE, password.unwrap_or_default())?,
        (words, password) => mnemonic_seed(words, password.unwrap_or_default())?,
    };
    for junction in junctions(path)? {
        seed = derived(scheme, &seed, &junction);
    }
    Ok(seed)
}

/// Reads `0x` and hex digits.
fn hex_seed(text: &str) -> Result<Seed, PhraseError> {
    let digits = text.strip_prefix("0x").ok_or(PhraseError::Hex)?.as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != SEED_SIZE || !rest.is_empty() {
        return Err(PhraseError::Hex);
    }
    let mut seed = Seed::default();
    for (byte, [high, low]) in seed.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Ok(seed)
}

fn nibble(digit: u8) -> Result<u8, PhraseError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PhraseError::Hex),
    }
}

/// Substrate's way from a mnemonic to a seed: PBKDF2 over the entropy, not over the words.
fn mnemonic_seed(words: &str, password: &str) -> Result<Seed, PhraseError> {
    let words = Zeroizing::new(words.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut mnemonic =
        Mnemonic::parse_in_normalized(Language::English, &words).map_err(|error| match error {
            bip39::Error::BadWordCount(count) => PhraseError::WordCount(count),
            bip39::Error::UnknownWord(index) => PhraseError::UnknownWord(index + 1),
            _ => PhraseError::Checksum,
        })?;
    let (mut entropy, size) = mnemonic.to_entropy_array();
    mnemonic.zeroize();
    let salt = Zeroizing::new([b"mnemonic", password.as_bytes()].concat());
    let mut made = Zeroizing::new([0; PBKDF2_SIZE]);
    let secret = entropy.get(..size).unwrap_or_default();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, PBKDF2_ROUNDS, &salt, secret, &mut *made);
    entropy.zeroize();
    let mut seed = Seed::default();
    for (to, from) in seed.iter_mut().zip(made.iter()) {
        *to = *from;
    }
    Ok(seed)
}

/// The chain codes of a path's junctions.
fn junctions(path: &str) -> Result<Vec<[u8; 32]>, PhraseError> {
    let mut codes = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let after = rest.strip_prefix("//").ok_or(PhraseError::SoftJunction)?;
        let end = after.find('/').unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        codes.push(chain_code(name));
        if codes.len() > JUNCTION_COUNT_MAX {
            return Err(PhraseError::TooManyJunctions);
        }
        rest = next;
    }
    Ok(codes)
}

/// A junction as 32 bytes: a number as 8 little-endian bytes, other text with its SCALE length in
/// front, either filled up with zeros, or hashed if it is too long.
fn chain_code(name: &str) -> [u8; 32] {
    let encoded = match name.parse::<u64>() {
        Ok(number) => number.to_le_bytes().to_vec(),
        Err(_) => [&compact(name.len())[..], name.as_bytes()].concat(),
    };
    let mut code = [0; 32];
    match code.get_mut(..encoded.len()) {
        Some(start) => start.copy_from_slice(&encoded),
        None => code.copy_from_slice(Params::new().hash_length(32).hash(&encoded).as_bytes()),
    }
    code
}

/// SCALE's compact number, as far as a phrase's length goes.
fn compact(number: usize) -> Vec<u8> {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    match u8::try_from(number) {
        Ok(small) if small < 64 => vec![small << 2],
        _ => (number << 2 | 1).to_le_bytes().to_vec(),
    }
}

/// One hard junction further.
fn derived(scheme: Scheme, seed: &Seed, code: &[u8; 32]) -> Seed {
    let mut next = Seed::default();
    match scheme {
        Scheme::Sr25519 => {
            let keys = sr25519(seed);
            let (mini, _): (MiniSecretKey, ChainCode) =
                keys.secret.hard_derive_mini_secret_key(Some(ChainCode(*code)), b"");
            next.copy_from_slice(mini.as_bytes());
        }
        Scheme::Ed25519 => {
            let mut state = Params::new().hash_length(32).to_state();
            state.update(ED25519_DERIVATION).update(&seed[..]).update(code);
            next.copy_from_slice(state.finalize().as_bytes());
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(phrase: &str) -> PhraseError {
        seed(Scheme::Sr25519, phrase).unwrap_err()
    }

    #[test]
    fn a_hex_seed_is_itself() {
        let text = format!("0x{}", "0aF1".repeat(16));
        assert_eq!(seed(Scheme::Sr25519, &text).unwrap()[..2], [0x0a, 0xf1]);
        assert_eq!(error("0x0af1"), PhraseError::Hex);
        assert_eq!(error(&format!("0x{}", "0g".repeat(32))), PhraseError::Hex);
        assert_eq!(error(&format!("{text}0")), PhraseError::Hex);
        assert_eq!(error(&format!("{text}///secret")), PhraseError::Password);
    }

    #[test]
    fn mnemonics_are_checked() {
        assert_eq!(error("bottom drive"), PhraseError::WordCount(2));
        let unknown = DEVELOPMENT_PHRASE.replace("obey", "zero-os");
        assert_eq!(error(&unknown), PhraseError::UnknownWord(3));
        let swapped = DEVELOPMENT_PHRASE.replace("bottom drive", "drive bottom");
        assert_eq!(error(&swapped), PhraseError::Checksum);
        let spaced = format!("  {}\n", DEVELOPMENT_PHRASE.replace(' ', "   "));
        let spaced = seed(Scheme::Sr25519, &spaced).unwrap();
        assert_eq!(*spaced, *seed(Scheme::Sr25519, DEVELOPMENT_PHRASE).unwrap());
    }

    #[test]
    fn paths_and_passwords_matter() {
        let seeds = ["", "//Alice", "//Bob", "//Alice//1", "//Alice//01x", "///secret"]
            .map(|path| *seed(Scheme::Ed25519, &format!("{DEVELOPMENT_PHRASE}{path}")).unwrap());
        let distinct: std::collections::HashSet<_> = seeds.iter().collect();
        assert_eq!(distinct.len(), seeds.len());
        assert_eq!(error("/soft"), PhraseError::SoftJunction);
        assert_eq!(error("//hard/soft"), PhraseError::SoftJunction);
        assert_eq!(error(&"//x".repeat(17)), PhraseError::TooManyJunctions);
        assert_eq!(error(&"x".repeat(2000)), PhraseError::TooLong(2000));
    }

    #[test]
    fn long_junctions_are_hashed() {
        assert_ne!(chain_code(&"a".repeat(40)), chain_code(&"a".repeat(41)));
        assert_eq!(chain_code("Alice")[..6], *b"\x14Alice");
        assert_eq!(chain_code("5")[..9], [5, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(compact(64), [1, 1]);
    }
}
