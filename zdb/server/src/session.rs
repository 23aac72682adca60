//! Who a client is: the namespace it works in, and what it may do there.
//!
//! ```text
//!             connect                SELECT ns [password]              AUTH password
//!   (nobody) ───────> default, guest ───────────────────> ns, owner ─────────────────> ..., admin
//! ```
//!
//! Rights are of two kinds (`reference: zdb 2.2`): *admin* is about the server and lasts until the
//! connection ends; *writable* is about the namespace and decided anew at each `SELECT`.

use sha1::{Digest, Sha1};

use crate::core::{ClientId, NamespaceId};

/// Bytes of a challenge, in hex digits.
pub const CHALLENGE_SIZE: usize = 16;
/// Bytes of the answer to a challenge: SHA-1 in hex digits.
pub const ANSWER_SIZE: usize = 40;

/// A client's rights.
#[derive(Debug)]
pub struct Session {
    /// Which client.
    pub client: ClientId,
    /// The namespace its commands are about.
    pub namespace: NamespaceId,
    /// Whether it gave the administrator's password, or there is none.
    pub is_admin: bool,
    /// Whether it may write to the namespace.
    pub is_writable: bool,
    /// Whether it came through the unix socket.
    pub is_local: bool,
    /// Whether it asked for RESP3, which has a nil of its own.
    pub is_resp3: bool,
    /// What it must hash with a password, if it asked for a challenge.
    pub challenge: Option<[u8; CHALLENGE_SIZE]>,
    /// For handing over keys: our half of the agreement, if it asked for one.
    pub agreement: Option<crate::seal::Agreement>,
    /// Whether its connection ends once all replies are sent.
    pub is_closing: bool,
    /// Whether its last request's reply comes when another thread has done it.
    pub is_asking: bool,
    /// The namespace whose writes it follows, if it does.
    pub follows: Option<NamespaceId>,
}

impl Session {
    /// A client that has just come.
    #[must_use]
    pub fn new(client: ClientId, namespace: NamespaceId, is_local: bool) -> Self {
        Self {
            client,
            namespace,
            is_admin: false,
            is_writable: false,
            is_local,
            is_resp3: false,
            challenge: None,
            agreement: None,
            is_closing: false,
            is_asking: false,
            follows: None,
        }
    }
}

/// Whether two secrets are the same, in a time that tells nothing about where they differ.
#[must_use]
pub fn is_same(left: &[u8], right: &[u8]) -> bool {
    let differences = left.iter().zip(right).fold(0, |all, (left, right)| all | (left ^ right));
    left.len() == right.len() && differences == 0
}

/// Whether `answer` is the hash of the challenge and the password (`reference: zdb 2.3`).
#[must_use]
pub fn is_answer(challenge: &[u8; CHALLENGE_SIZE], password: &[u8], answer: &[u8]) -> bool {
    let hash = Sha1::new().chain_update(challenge).chain_update(b":").chain_update(password);
    let mut expected = [0; ANSWER_SIZE];
    write_hex(&hash.finalize(), &mut expected);
    is_same(&expected, answer)
}

/// Writes bytes as lower-case hex digits; as many as fit.
pub fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        if let [high, low] = pair {
            *high = DIGITS[usize::from(byte >> 4)];
            *low = DIGITS[usize::from(byte & 15)];
        }
    }
}

/// Reads hex digits; `None` if these are not exactly `N` bytes' worth.
#[must_use]
pub fn read_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = (*byte << 4) | u8::try_from(value).ok()?;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_hash_of_challenge_and_password() {
        let challenge = *b"0123456789abcdef";
        let answer = {
            let hash = Sha1::digest(b"0123456789abcdef:secret");
            hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert!(is_answer(&challenge, b"secret", answer.as_bytes()));
        assert!(!is_answer(&challenge, b"secrets", answer.as_bytes()));
        assert!(!is_answer(&challenge, b"secret", answer.to_uppercase().as_bytes()));
    }

    #[test]
    fn hex_leads_back() {
        let mut digits = [0; 8];
        write_hex(&[0, 1, 0xab, 0xff], &mut digits);
        assert_eq!(&digits, b"0001abff");
        assert_eq!(read_hex(&digits), Some([0, 1, 0xab, 0xff]));
        assert_eq!(read_hex::<4>(b"0001abf"), None);
        assert_eq!(read_hex::<4>(b"0001abfg"), None);
    }
}
