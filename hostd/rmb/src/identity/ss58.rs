//! SS58, how Substrate writes account ids for people: base58 of a prefix, the key, and a checksum.
//!
//! ```text
//!  42 │ public key (32) │ first two bytes of BLAKE2b-512("SS58PRE" ‖ 42 ‖ public key)
//! ```

use blake2b_simd::State;

/// The prefix of the grid's chain, which is Substrate's generic one.
const PREFIX: u8 = 42;
const CHECKSUM_SIZE: usize = 2;
const BYTES_SIZE: usize = 1 + 32 + CHECKSUM_SIZE;
/// No address of 35 bytes has more digits.
const ADDRESS_SIZE_MAX: usize = 49;
const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Why a text is no address of the grid.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum AddressError {
    /// A character that base58 does not have, or too many.
    #[error("an address has up to {ADDRESS_SIZE_MAX} base58 digits")]
    Digits,
    /// Something of another size, in base58.
    #[error("an address has {BYTES_SIZE} bytes, this one {0}")]
    Size(usize),
    /// An address of another chain.
    #[error("the address has prefix {0}; the grid's is {PREFIX}")]
    Prefix(u8),
    /// A typing mistake.
    #[error("the address's checksum is wrong")]
    Checksum,
}

/// The address of an account.
pub(super) fn encode(account: &[u8; 32]) -> String {
    let mut bytes = Vec::with_capacity(BYTES_SIZE);
    bytes.push(PREFIX);
    bytes.extend_from_slice(account);
    bytes.extend_from_slice(&checksum(account));
    base58(&bytes)
}

/// The account of an address.
pub(super) fn decode(address: &str) -> Result<[u8; 32], AddressError> {
    let bytes = from_base58(address)?;
    let size = bytes.len();
    let bytes: [u8; BYTES_SIZE] = bytes.try_into().map_err(|_| AddressError::Size(size))?;
    let [prefix, rest @ ..] = bytes;
    if prefix != PREFIX {
        return Err(AddressError::Prefix(prefix));
    }
    let (account, sum) = rest.split_first_chunk::<32>().ok_or(AddressError::Size(size))?;
    if *sum != checksum(account) {
        return Err(AddressError::Checksum);
    }
    Ok(*account)
}

fn checksum(account: &[u8; 32]) -> [u8; CHECKSUM_SIZE] {
    let hash = State::new().update(b"SS58PRE").update(&[PREFIX]).update(account).finalize();
    let [first, second, ..] = *hash.as_array();
    [first, second]
}

fn base58(bytes: &[u8]) -> String {
    // Digits, the lowest first.
    let mut digits: Vec<u8> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = low_byte(carry % 58);
            carry /= 58;
        }
        while carry > 0 {
            digits.push(low_byte(carry % 58));
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).map(|_| 0);
    let digits = zeros.chain(digits.into_iter().rev());
    digits
        .filter_map(|digit| ALPHABET.get(usize::from(digit)).map(|byte| char::from(*byte)))
        .collect()
}

fn from_base58(text: &str) -> Result<Vec<u8>, AddressError> {
    if text.len() > ADDRESS_SIZE_MAX {
        return Err(AddressError::Digits);
    }
    let mut bytes: Vec<u8> = Vec::new();
    for character in text.bytes() {
        let digit = ALPHABET.iter().position(|other| *other == character);
        let digit =
            digit.and_then(|digit| u32::try_from(digit).ok()).ok_or(AddressError::Digits)?;
        let mut carry = digit;
        for byte in &mut bytes {
            carry += u32::from(*byte) * 58;
            *byte = low_byte(carry);
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push(low_byte(carry));
            carry >>= 8;
        }
    }
    bytes.extend(text.bytes().take_while(|byte| *byte == b'1').map(|_| 0));
    bytes.reverse();
    Ok(bytes)
}

fn low_byte(number: u32) -> u8 {
    let [low, ..] = number.to_le_bytes();
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base58_keeps_leading_zeros() {
        for bytes in [&[0, 0, 1, 255][..], &[], &[0], &[58], b"hello world"] {
            assert_eq!(from_base58(&base58(bytes)).unwrap(), bytes);
        }
        assert_eq!(base58(b"hello world"), "StV1DL6CwTryKyV");
    }

    #[test]
    fn mistakes_are_found() {
        let address = encode(&[7; 32]);
        assert_eq!(decode(&address).unwrap(), [7; 32]);
        let mut wrong = address.clone().into_bytes();
        wrong[10] = if wrong[10] == b'A' { b'B' } else { b'A' };
        let wrong = String::from_utf8(wrong).unwrap();
        assert_eq!(decode(&wrong), Err(AddressError::Checksum));
        assert!(decode(&address[1..]).is_err());
        assert_eq!(decode("0"), Err(AddressError::Digits));
        assert_eq!(decode(""), Err(AddressError::Size(0)));
        assert_eq!(decode(&"2".repeat(50)), Err(AddressError::Digits));
        // Polkadot's own prefix.
        let polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5";
        assert_eq!(decode(polkadot), Err(AddressError::Prefix(0)));
    }
}
