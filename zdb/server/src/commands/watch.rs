//! Waiting for others' commands.

use std::time::Duration;

use super::{Call, CommandId};
use crate::core::Watcher;
use crate::refusal::Outcome;

/// Without a timeout given, in milliseconds (`reference: zdb 2.3`).
const TIMEOUT_DEFAULT_MS: u64 = 5000;
const TIMEOUT_MIN_MS: u64 = 100;
const TIMEOUT_MAX_MS: u64 = 30 * 60 * 1000;
/// Longest number of a timeout that is looked at, in digits.
const TIMEOUT_SIZE_MAX: usize = 15;

/// `WAIT command|* [milliseconds]`. The reply comes when another client of the namespace calls the
/// command, or when the time is over; the client may go on meanwhile.
pub(super) fn wait(call: &mut Call<'_, '_>) -> Outcome {
    if !(2..=3).contains(&call.count()) {
        return Err("Invalid arguments".into());
    }
    let command = match call.argument(1) {
        b"*" => None,
        name => Some(CommandId::find(name).ok_or("Unknown command to watch")?),
    };
    let millis = match call.request.argument(2) {
        None => TIMEOUT_DEFAULT_MS,
        Some(text) => parse_timeout(text).ok_or("Invalid timeout")?,
    };
    let watcher = Watcher { client: call.session.client, command };
    call.core.wait(call.session.namespace, watcher, Duration::from_millis(millis));
    Ok(())
}

fn parse_timeout(text: &[u8]) -> Option<u64> {
    if text.len() > TIMEOUT_SIZE_MAX {
        return None;
    }
    let millis = std::str::from_utf8(text).ok()?.parse().ok()?;
    (TIMEOUT_MIN_MS..=TIMEOUT_MAX_MS).contains(&millis).then_some(millis)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Server;
    use super::*;

    #[test]
    fn timeouts_are_numbers_in_bounds() {
        assert_eq!(parse_timeout(b"100"), Some(100));
        assert_eq!(parse_timeout(b"1800000"), Some(1_800_000));
        for bad in [&b"99"[..], b"1800001", b"abc", b"12345678901234567", b"-200", b""] {
            assert_eq!(parse_timeout(bad), None);
        }
    }

    #[test]
    fn a_wait_ends_by_another_clients_command_and_once() {
        let mut server = Server::new();
        let (mut one, mut two) = (server.client(), server.client());
        server.tell(&mut one, &[b"WAIT", b"SET"]);
        server.ask(&mut one, &[b"SET", b"mine", b"v"]);
        server.ask(&mut two, &[b"GET", b"k"]);
        assert!(server.core().take_messages().is_empty());
        server.ask(&mut two, &[b"SET", b"k", b"v"]);
        server.ask(&mut two, &[b"SET", b"k", b"w"]);
        let messages = server.core().take_messages();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].1, b"+SET\r\n");
        assert!(server.core().waits.next().is_none());
    }

    #[test]
    fn a_wait_ends_in_time_and_with_its_client() {
        let mut server = Server::new();
        let mut one = server.client();
        server.tell(&mut one, &[b"WAIT", b"*", b"100"]);
        std::thread::sleep(Duration::from_millis(120));
        server.core().begin_batch();
        server.core().end_waits();
        assert_eq!(server.core().take_messages()[0].1, b"-Timeout\r\n");
        server.tell(&mut one, &[b"WAIT", b"*"]);
        server.core().forget(one.session());
        assert!(server.core().waits.next().is_none());
    }
}
