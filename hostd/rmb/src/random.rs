//! Random bytes of the operating system, for nonces, ephemeral keys and message ids.

use ring::rand::{SecureRandom, SystemRandom};

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("the operating system gives no random bytes")]
pub struct RandomError;

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RandomError)?;
    Ok(bytes)
}

/// A random number from 0 to `limit`, for jitter: slightly uneven, and nobody minds.
pub(crate) fn up_to(limit: u64) -> u64 {
    let number = bytes::<8>().map_or(0, u64::from_le_bytes);
    limit.checked_add(1).map_or(number, |count| number % count)
}

/// A version 4 UUID as text (RFC 9562 §5.4), the id of an envelope.
pub(crate) fn uuid() -> Result<String, RandomError> {
    let mut number = u128::from_be_bytes(bytes()?);
    number = number & !(0xf << 76) | 0x4 << 76;
    number = number & !(0x3 << 62) | 0x2 << 62;
    let hex = format!("{number:032x}");
    let mut text = String::with_capacity(36);
    for (index, digit) in hex.chars().enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let text = uuid().unwrap();
        let parts: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(text.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&text.as_bytes()[19]));
        assert_ne!(text, uuid().unwrap());
    }

    #[test]
    fn jitter_stays_below_its_limit() {
        assert_eq!(up_to(0), 0);
        assert!((0..100).all(|_| up_to(3) <= 3));
    }
}
