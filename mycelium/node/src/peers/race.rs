//! A name has several addresses, of which some may lead nowhere: they are tried in turn, each a moment
//! after the one before, and the first connection wins (RFC 8305).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long an attempt has before the next one begins beside it (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Gives what the first attempt to succeed gives. Those that have begun end with it.
pub(super) async fn race<T, A, F>(addresses: Vec<SocketAddr>, attempt: A) -> anyhow::Result<T>
where
    T: Send + 'static,
    A: Fn(SocketAddr) -> F,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let mut left = interleaved(addresses).into_iter().peekable();
    let mut attempts = JoinSet::new();
    let mut failures: Vec<anyhow::Error> = Vec::new();
    loop {
        if let Some(address) = left.next() {
            let connecting = attempt(address);
            attempts.spawn(async move { connecting.await.with_context(|| address.to_string()) });
        }
        let has_more = left.peek().is_some();
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failures.push(error),
                // An attempt that panicked.
                Err(error) => failures.push(error.into()),
            },
            () = sleep(ATTEMPT_DELAY), if has_more => {}
            else => return Err(all(failures)),
        }
    }
}

/// What is said of several failures.
fn all(mut failures: Vec<anyhow::Error>) -> anyhow::Error {
    match (failures.len(), failures.pop()) {
        (_, None) => anyhow!("the name has no address"),
        (1, Some(only)) => only,
        (_, Some(last)) => {
            let text = |error: &anyhow::Error| format!("{error:#}");
            let texts: Vec<String> = failures.iter().chain([&last]).map(text).collect();
            anyhow!("no address answers: {}", texts.join("; "))
        }
    }
}

/// Addresses in the order of the resolver, but with families taking turns (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let count = first.len().max(second.len());
    let turns = (0..count).flat_map(|turn| [first.get(turn), second.get(turn)]);
    turns.flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rfc_8305_4_families_take_turns() {
        let given = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"]);
        let expected = addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(interleaved(given), expected);
        assert_eq!(interleaved(Vec::new()), []);
    }

    #[tokio::test]
    async fn an_address_that_leads_nowhere_does_not_hold_up_the_next() {
        let begun = Arc::new(AtomicU32::new(0));
        let start = Instant::now();
        let given = addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1"]);
        let winner = race(given, |address| {
            let begun = Arc::clone(&begun);
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                if address.is_ipv6() {
                    sleep(Duration::from_secs(60)).await;
                }
                Ok(address)
            }
        });
        assert_eq!(winner.await.unwrap(), addresses(&["127.0.0.1:1"])[0]);
        assert!(start.elapsed() >= ATTEMPT_DELAY && start.elapsed() < Duration::from_secs(20));
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn one_that_fails_gives_way_at_once_and_all_are_told_of() {
        let start = Instant::now();
        let given = addresses(&["[::1]:1", "127.0.0.1:1"]);
        let failed = race::<(), _, _>(given, |_| async { Err(anyhow!("refused")) });
        let text = format!("{:#}", failed.await.unwrap_err());
        assert!(start.elapsed() < ATTEMPT_DELAY, "{:?}", start.elapsed());
        assert!(text.contains("[::1]:1: refused; 127.0.0.1:1: refused"), "{text}");
        let none = race::<(), _, _>(Vec::new(), |_| async { Ok(()) }).await.unwrap_err();
        assert!(none.to_string().contains("no address"));
    }
}
