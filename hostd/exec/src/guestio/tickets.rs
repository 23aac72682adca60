//! Tickets to a console: 32 hexadecimal digits, good for a minute, in the file `tickets` of the machine's
//! folder, a line each: the second until which it is good, a blank, the digits. `guestio console` reads it,
//! and lets each in once.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::kept::write_whole;

/// Seconds for which a ticket is good.
pub(super) const LIFETIME: u64 = 60;
/// Tickets that are good at a time: the newest.
const COUNT_MAX: usize = 32;
/// Bytes of the file, with room for times of more digits.
const SIZE_MAX: u64 = 4096;

/// A new ticket.
pub(super) fn issue(folder: &Path) -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let ticket: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs();
    let path = folder.join("tickets");
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => drop(file.take(SIZE_MAX).read_to_string(&mut text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let is_good = |line: &&str| {
        let until = line.split(' ').next().and_then(|until| until.parse::<u64>().ok());
        until.is_some_and(|until| until > now)
    };
    let good: Vec<_> = text.lines().filter(is_good).collect();
    let kept = good.iter().skip((good.len() + 1).saturating_sub(COUNT_MAX));
    let mut written: String = kept.map(|line| format!("{line}\n")).collect();
    written.push_str(&format!("{} {ticket}\n", now + LIFETIME));
    write_whole(&path, written.as_bytes())?;
    Ok(ticket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_kept_while_they_are_good_and_not_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tickets");
        std::fs::write(&path, "1 00112233445566778899aabbccddeeff\nnonsense\n").unwrap();
        let first = issue(folder.path()).unwrap();
        assert_eq!(first.len(), 32);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() == 1 && text.ends_with(&format!(" {first}\n")), "{text}");
        let issued: Vec<_> = (0..COUNT_MAX).map(|_| issue(folder.path()).unwrap()).collect();
        let last = issued.last().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), COUNT_MAX);
        assert!(text.contains(last) && !text.contains(&first));
        assert!(text.len() as u64 <= SIZE_MAX);
    }
}
