//! Peers call each other through relays.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use hostd_rmb::peer::{Call, CallError, Event, Peer, Retry};
use hostd_rmb::seal::{CloseError, Privacy};
use hostd_rmb::server::limits::Limits;
use hostd_rmb::server::replay::{ENTRY_SIZE, ReplayWindow};
use hostd_rmb::server::{Command, Commands, Journal, Recording, json};
use hostd_rmb::signature::Version;
use hostd_rmb::twins::Twins;

fn failed(message: &str) -> CallError {
    CallError::Failed { code: 0, message: message.into() }
}

#[tokio::test]
async fn commands_are_called_and_answered_with_every_kind_of_key() {
    for encryption in [None, Some(Version::V1), Some(Version::V2)] {
        let table = table(encryption);
        let served = Served::new(&table).await;
        let node = peer(config(served.address, 2, encryption), &table, commands()).await;
        let user = peer(config(served.address, 1, encryption), &table, Commands::default()).await;
        let call =
            |command: &str, payload: &'static str| user.call(Call::new(id(2), command, payload));

        assert_eq!(call("test.echo", "[1,2]").await.unwrap(), "[1,2]");
        assert_eq!(call("test.echo", "").await.unwrap(), "null");
        assert_eq!(call("test.nothing", "").await.unwrap(), "null");
        let expected = format!("[1,{}]", encryption.is_some());
        assert_eq!(call("test.whoami", "").await.unwrap(), expected);
        assert_eq!(call("test.fail", "").await, Err(failed("no such disk")));
        assert_eq!(
            call("test.panic", "").await,
            Err(failed("handler panicked with: out of disks"))
        );
        for unknown in ["test", "test.echo.x", "zos.vm.logs"] {
            assert_eq!(call(unknown, "").await, Err(failed("function is not found")));
        }
        // The node may ask too, of a client without commands.
        let asked = node.call(Call::new(id(1), "test.echo", "")).await;
        assert_eq!(asked, Err(failed("function is not found")));
        until("all is counted", || node.count(Event::Answered) == 9).await;
        assert_eq!(node.count(Event::Run), 6);
    }
}

/// Remembers what was written down, or takes nothing.
#[derive(Default)]
struct Written {
    entries: Mutex<Vec<[u8; ENTRY_SIZE]>>,
    is_broken: AtomicBool,
}

impl Journal for Written {
    fn record(&self, entry: [u8; ENTRY_SIZE]) -> Recording<'_> {
        Box::pin(async move {
            if self.is_broken.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.entries.lock().expect("no test panicked").push(entry);
            Ok(())
        })
    }
}

#[tokio::test]
async fn what_changes_something_is_written_down_before_it_is_done() {
    let table = table(None);
    let served = Served::new(&table).await;
    let written = Arc::new(Written::default());
    let at_work = Arc::clone(&written);
    let change = Command::new(move |_| {
        let count = at_work.entries.lock().unwrap().len();
        async move { json(&count) }
    });
    let commands = commands().with("test.change", change.once());
    let node = Peer::start_after(
        config(served.address, 2, None),
        identity(2),
        Arc::clone(&table) as Arc<dyn Twins>,
        commands,
        &[],
        Some(Arc::clone(&written) as Arc<dyn Journal>),
    );
    let node = node.unwrap();
    assert!(node.wait_connected(PATIENCE).await);
    let user = peer(config(served.address, 1, None), &table, Commands::default()).await;
    let call = |command: &str| user.call(Call::new(id(2), command, ""));
    assert_eq!(call("test.change").await.unwrap(), "1");
    assert_eq!(call("test.nothing").await.unwrap(), "null");
    assert_eq!(call("test.change").await.unwrap(), "2");
    written.is_broken.store(true, Ordering::Relaxed);
    let refused = call("test.change").await;
    assert_eq!(refused, Err(failed("the node can't write down requests now")));
    assert_eq!(call("test.nothing").await.unwrap(), "null");
    // Whoever starts with what was written, and nothing of what was in memory, knows both.
    let mut window = ReplayWindow::new().unwrap().to_bytes();
    let before = window.len();
    window.extend(written.entries.lock().unwrap().iter().flatten());
    let window = ReplayWindow::from_bytes(&window).unwrap();
    assert_eq!(window.to_bytes().len(), before + 2 * ENTRY_SIZE);
}

#[tokio::test]
async fn privacy_may_be_required() {
    let table = table(Some(Version::V1));
    table.add(twin(3, RELAY, None));
    let served = Served::new(&table).await;
    let user =
        peer(config(served.address, 1, Some(Version::V1)), &table, Commands::default()).await;
    let call = Call::new(id(3), "test.echo", "").privacy(Privacy::Required);
    assert_eq!(user.call(call).await, Err(CallError::Close(CloseError::NoKey(id(3)))));
}

#[tokio::test]
async fn many_calls_at_once_find_their_answers() {
    let table = table(Some(Version::V1));
    let served = Served::new(&table).await;
    let limits = Limits { running_per_twin: 100, burst: 1000, ..Limits::default() };
    let node = config(served.address, 2, Some(Version::V1));
    let _node = peer(hostd_rmb::peer::PeerConfig { limits, ..node }, &table, commands()).await;
    let user = config(served.address, 1, Some(Version::V1));
    let user = Arc::new(peer(user, &table, Commands::default()).await);
    let calls = (0..50).map(|number: u32| {
        let user = Arc::clone(&user);
        tokio::spawn(async move {
            let payload = number.to_string();
            let answer = user.call(Call::new(id(2), "test.echo", payload.clone())).await.unwrap();
            assert_eq!(answer, payload);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn large_payloads_pass_and_larger_ones_are_refused() {
    let table = table(Some(Version::V2));
    let served = Served::new(&table).await;
    let commands = commands().with(
        "test.large",
        Command::new(|request| async move { Ok(request.payload) })
            .payload_size_max(8 * 1024 * 1024),
    );
    let _node = peer(config(served.address, 2, Some(Version::V2)), &table, commands).await;
    let user =
        peer(config(served.address, 1, Some(Version::V2)), &table, Commands::default()).await;
    let call = |command: &str, size: usize| user.call(Call::new(id(2), command, vec![b'1'; size]));
    let answer = call("test.large", 5 * 1024 * 1024).await.unwrap();
    assert!(answer.len() == 5 * 1024 * 1024 && answer.iter().all(|byte| *byte == b'1'));
    let error = call("test.echo", 1024 * 1024 + 1).await.unwrap_err().to_string();
    assert_eq!(error, "test.echo takes at most 1048576 bytes, not 1048577");
    // Not even sent.
    let error = call("test.large", 8 * 1024 * 1024).await.unwrap_err();
    assert!(matches!(error, CallError::Close(CloseError::Envelope(_))), "{error}");
}

#[tokio::test]
async fn what_relays_say_is_passed_through() {
    let table = table(None);
    table.add(twin(4, "", None));
    let served = Served::new(&table).await;
    let user = peer(config(served.address, 1, None), &table, Commands::default()).await;
    let error = user.call(Call::new(id(4), "test.echo", "")).await.unwrap_err();
    assert_eq!(error.to_string(), "the relay says: relay info is not set for this twin");
    let error = user.call(Call::new(id(2), "test.echo", "").fail_fast(true)).await.unwrap_err();
    assert_eq!(error.to_string(), "the relay says: destination offline");
    let error = user.call(Call::new(id(100), "test.echo", "")).await.unwrap_err();
    assert_eq!(error, CallError::UnknownTwin(id(100)));
}

#[tokio::test]
async fn a_call_ends_with_its_time() {
    let table = table(None);
    let served = Served::new(&table).await;
    let user = peer(config(served.address, 1, None), &table, Commands::default()).await;
    let begin = Instant::now();
    let call = Call::new(id(2), "test.echo", "").time_max(Duration::from_millis(200));
    let error = user.call(call).await.unwrap_err();
    assert_eq!(error.to_string(), "twin 2 did not answer test.echo in 200ms");
    assert!(begin.elapsed() < PATIENCE);
    // Nobody listens where this one should connect to.
    let (listener, nowhere) = fake_relay().await;
    drop(listener);
    let table = Arc::clone(&table) as Arc<dyn hostd_rmb::twins::Twins>;
    let lonely = config(nowhere, 1, None);
    let lonely =
        hostd_rmb::peer::Peer::start(lonely, identity(1), table, Commands::default()).unwrap();
    let call = Call::new(id(2), "test.echo", "").time_max(Duration::from_millis(200));
    let error = lonely.call(call).await.unwrap_err();
    assert_eq!(error.to_string(), "not sent: not connected to any relay");
}

#[tokio::test]
async fn peers_survive_a_relay_that_is_restarted() {
    let table = table(Some(Version::V1));
    let mut served = Served::new(&table).await;
    let address = served.address;
    let node = peer(config(address, 2, Some(Version::V1)), &table, commands()).await;
    let user = peer(config(address, 1, Some(Version::V1)), &table, Commands::default()).await;
    for round in 0..2 {
        let call = Call::new(id(2), "test.echo", "1").retry(Retry::Reads);
        assert_eq!(user.call(call).await.unwrap(), "1", "round {round}");
        drop(served);
        until("they notice", || node.connected_count() + user.connected_count() == 0).await;
        served = Served::with(&table, relay_config(), address).await;
        assert!(node.wait_connected(PATIENCE).await);
        // A call waits for the connection by itself.
        let call = Call::new(id(2), "test.echo", "2").retry(Retry::Reads);
        assert_eq!(user.call(call).await.unwrap(), "2", "round {round}");
    }
}

#[tokio::test]
async fn what_was_asked_while_the_node_was_away_waits_for_it() {
    let table = table(None);
    let served = Served::new(&table).await;
    let user = config(served.address, 1, None);
    let user = Arc::new(peer(user, &table, Commands::default()).await);
    let asking = {
        let user = Arc::clone(&user);
        tokio::spawn(async move { user.call(Call::new(id(2), "test.echo", "1")).await })
    };
    until("it was asked", || user.count(Event::Called) == 1).await;
    let _node = peer(config(served.address, 2, None), &table, commands()).await;
    assert_eq!(asking.await.unwrap().unwrap(), "1");
}

#[tokio::test]
async fn a_twin_is_reached_at_any_of_its_relays() {
    let relays = "127.0.0.1_localhost";
    let table = table(Some(Version::V1));
    (1..3).for_each(|number| table.add(twin(number, relays, Some(Version::V1))));
    let a = Served::new(&table).await;
    let b_config =
        || rmb_relay::RelayConfig { domains: vec!["localhost".into()], ..relay_config() };
    let b = Served::with(&table, b_config(), "127.0.0.1:0".parse().unwrap()).await;
    let both = |number| hostd_rmb::peer::PeerConfig {
        relays: vec![
            format!("ws://{}", a.address).parse().unwrap(),
            format!("ws://localhost:{}", b.address.port()).parse().unwrap(),
        ],
        ..config(a.address, number, Some(Version::V1))
    };
    let node = peer(both(2), &table, commands()).await;
    let user = peer(both(1), &table, Commands::default()).await;
    until("both", || node.connected_count() == 2 && user.connected_count() == 2).await;
    let call = || user.call(Call::new(id(2), "test.echo", "1").retry(Retry::Reads));
    assert_eq!(call().await.unwrap(), "1");
    drop(a);
    until("one is gone", || node.connected_count() == 1 && user.connected_count() == 1).await;
    assert_eq!(call().await.unwrap(), "1");
}

#[tokio::test]
async fn one_twin_can_have_several_sessions() {
    let table = table(Some(Version::V1));
    let served = Served::new(&table).await;
    let session = |number, name: &str| hostd_rmb::peer::PeerConfig {
        session: Some(name.into()),
        ..config(served.address, number, Some(Version::V1))
    };
    let _node = peer(config(served.address, 2, Some(Version::V1)), &table, commands()).await;
    let a = peer(session(1, "a"), &table, Commands::default()).await;
    let b = peer(session(1, "b"), &table, commands()).await;
    // Answers find the session that asked.
    for user in [&a, &b] {
        assert_eq!(user.call(Call::new(id(2), "test.echo", "1")).await.unwrap(), "1");
    }
    let call = Call::new(id(1), "test.echo", "2").connection(Some("b".into()));
    assert_eq!(a.call(call).await.unwrap(), "2");
}

#[tokio::test]
async fn who_asks_too_much_is_told_so() {
    let table = table(None);
    let served = Served::new(&table).await;
    let limits = Limits { burst: 3, rate_per_second: 0.001, ..Limits::default() };
    let node = hostd_rmb::peer::PeerConfig { limits, ..config(served.address, 2, None) };
    let node = peer(node, &table, commands()).await;
    let user = peer(config(served.address, 1, None), &table, Commands::default()).await;
    let other = peer(config(served.address, 3, None), &table, Commands::default()).await;
    for _ in 0..3 {
        user.call(Call::new(id(2), "test.echo", "")).await.unwrap();
    }
    let error = user.call(Call::new(id(2), "test.echo", "")).await;
    assert_eq!(error, Err(failed("too many requests: a twin may make 0.001 a second")));
    assert_eq!(node.count(Event::Refused), 1);
    other.call(Call::new(id(2), "test.echo", "")).await.unwrap();
}

#[tokio::test]
async fn only_so_many_commands_of_a_twin_run_at_a_time() {
    let table = table(None);
    let served = Served::new(&table).await;
    let limits = Limits { running_per_twin: 2, ..Limits::default() };
    let node = hostd_rmb::peer::PeerConfig { limits, ..config(served.address, 2, None) };
    let _node = peer(node, &table, commands()).await;
    let user = Arc::new(peer(config(served.address, 1, None), &table, Commands::default()).await);
    let calls = (0..3).map(|_| {
        let user = Arc::clone(&user);
        tokio::spawn(async move { user.call(Call::new(id(2), "test.slow", "")).await })
    });
    let mut done = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer, "\"slow\"");
                done += 1;
            }
            Err(error) => {
                assert_eq!(error, failed("too many requests: 2 of this twin are running"));
            }
        }
    }
    assert_eq!(done, 2);
    // And what is done makes room.
    user.call(Call::new(id(2), "test.slow", "")).await.unwrap();
}
