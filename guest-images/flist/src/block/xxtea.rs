//! XXTEA (Corrected Block TEA) with the length word that legacy images append.
//!
//! Wheeler and Needham, "Correction to xtea", 1998; `reference: flist 1.2`. Only decryption: we read
//! legacy images and never write them.

const DELTA: u32 = 0x9e37_79b9;

/// Decrypts `data`, little-endian words of which the last is the plaintext's size in bytes. `None`
/// when the sizes contradict each other, which is what a wrong key looks like.
pub(super) fn decrypt(data: &[u8], key: &[u8; 16]) -> Option<Vec<u8>> {
    if data.len() < 8 || !data.len().is_multiple_of(4) {
        return None;
    }
    let mut words: Vec<u32> = words(data).collect();
    let key: Vec<u32> = self::words(key).collect();
    decrypt_words(&mut words, [key[0], key[1], key[2], key[3]]);
    let size = usize::try_from(words.pop()?).ok()?;
    if size > words.len() * 4 || words.len() * 4 - size > 3 {
        return None;
    }
    let mut plaintext: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    plaintext.truncate(size);
    Some(plaintext)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// `words` holds at least two words.
fn decrypt_words(words: &mut [u32], key: [u32; 4]) {
    let count = words.len();
    // At least 6 rounds, at most 32: the quotient is at most 26.
    let rounds = u32::try_from(6 + 52 / count).unwrap_or(6);
    let mut sum = rounds.wrapping_mul(DELTA);
    let mut next = words[0];
    while sum != 0 {
        let e = (sum >> 2) & 3;
        for position in (0..count).rev() {
            let previous = words[if position > 0 { position - 1 } else { count - 1 }];
            let key = key[(position & 3) ^ e as usize];
            let mixed = ((previous >> 5) ^ (next << 2)).wrapping_add((next >> 3) ^ (previous << 4))
                ^ (sum ^ next).wrapping_add(key ^ previous);
            words[position] = words[position].wrapping_sub(mixed);
            next = words[position];
        }
        sum = sum.wrapping_sub(DELTA);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_sizes_give_nothing() {
        let key = [7; 16];
        for size in 0..64 {
            let _ = decrypt(&vec![0xa5; size], &key);
        }
        assert_eq!(decrypt(&[0; 4], &key), None);
        assert_eq!(decrypt(&[0; 7], &key), None);
    }
}
