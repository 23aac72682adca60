//! What clients see while a namespace is away.

use std::time::Instant;

use zdb_client::Value;

use crate::commands::testing::{Server, bulk, error, simple};

#[test]
fn others_are_served_while_a_namespace_is_away_and_replies_keep_their_order() {
    let mut server = Server::new();
    let [mut asker, mut owner, mut other] = [(); 3].map(|()| server.client());
    server.ask(&mut asker, &[b"NSNEW", b"n"]);
    server.ask(&mut owner, &[b"SELECT", b"n"]);
    for (command, then) in [
        (&[&b"NSSET"[..], b"n", b"maxsize", b"1000"][..], &[&b"GET"[..], b"k"][..]),
        (&[b"NSNEW", b"new"], &[b"SELECT", b"new"]),
        (&[b"RELOAD", b"n"], &[b"NSINFO", b"n"]),
    ] {
        server.send(&mut asker, command);
        server.send(&mut asker, &[b"PING"]);
        server.send(&mut owner, then);
        server.send(&mut other, &[b"SET", b"k", b"v", b"1"]);
        server.send(&mut other, &[b"GET", b"k"]);
        let served = server.received(&mut other);
        assert_eq!(served.last(), Some(&bulk(b"v")), "{command:?}");
        for waiting in [&mut asker, &mut owner] {
            assert_eq!(server.received(waiting), [], "{command:?}");
            assert!(!waiting.may_resume() && !waiting.may_receive());
        }
        assert!(server.run_pending());
        server.deliver(&mut asker);
        server.deliver(&mut owner);
        assert_eq!(server.received(&mut asker), [simple("OK"), simple("PONG")]);
        assert_eq!(server.received(&mut owner).len(), 1, "{then:?}");
    }
}

#[test]
fn a_sync_that_ends_meanwhile_counts_when_the_namespace_is_back() {
    let mut server = Server::new();
    let (mut asker, mut writer) = (server.client(), server.client());
    server.ask(&mut writer, &[b"SET", b"begins", b"a segment"]);
    let mut request = Vec::new();
    zdb_resp::write::request(&mut request, &[&b"SET"[..], b"k", b"v"]);
    let core = server.core();
    core.begin_batch();
    writer.receive(core, &request, Instant::now());
    core.commit();
    let syncs: Vec<_> = core.take_syncs().collect();
    assert_eq!(syncs.len(), 1);
    server.send(&mut asker, &[b"NSSET", b"default", b"freeze", b"1"]);
    for sync in syncs {
        server.core().synced(sync.run());
    }
    assert_eq!(server.received(&mut writer), [], "nobody can know that it is durable");
    assert!(server.run_pending());
    assert_eq!(server.received(&mut writer), [bulk(b"k")]);
}

#[test]
fn a_namespace_is_in_the_figures_while_it_is_away() {
    let mut server = Server::new();
    let mut asker = server.client();
    server.ask(&mut asker, &[b"SET", b"k", b"value"]);
    let line = "zdb_namespace_entries{namespace=\"default\"} 1";
    server.send(&mut asker, &[b"NSSET", b"default", b"freeze", b"1"]);
    for _ in 0..2 {
        let text = crate::prometheus::render(server.core());
        assert!(text.lines().any(|other| other == line), "{text}");
        server.run_pending();
    }
}

#[test]
fn a_task_waits_for_a_segment_that_is_changing_and_so_does_nobody_else() {
    let mut server = Server::new();
    let (mut asker, mut writer) = (server.client(), server.client());
    let mut request = Vec::new();
    zdb_resp::write::request(&mut request, &[&b"SET"[..], b"k", b"v"]);
    let core = server.core();
    core.begin_batch();
    writer.receive(core, &request, Instant::now());
    core.commit();
    let syncs: Vec<_> = core.take_syncs().collect();
    assert_eq!(syncs.len(), 1, "the first segment is made beside the loop");
    server.send(&mut asker, &[b"NSSET", b"default", b"freeze", b"1"]);
    assert!(!server.run_pending(), "postponed");
    server.send(&mut writer, &[b"GET", b"k"]);
    assert_eq!(server.received(&mut writer), [], "its reply comes after that of the write");
    for sync in syncs {
        server.core().synced(sync.run());
    }
    server.settle();
    assert_eq!(server.received(&mut writer), [bulk(b"k"), bulk(b"v")]);
    server.deliver(&mut asker);
    assert!(server.run_pending());
    server.deliver(&mut asker);
    assert_eq!(server.received(&mut asker), [simple("OK")]);
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let mut server = Server::new();
    let mut client = server.client();
    let data = server.core().engine.options().data.clone();
    // A file where the folder would be.
    std::fs::write(data.join("n"), "").unwrap();
    let failed = server.ask(&mut client, &[b"NSNEW", b"n"]);
    assert!(matches!(failed, Value::Error(_)), "{failed:?}");
    assert_eq!(server.ask(&mut client, &[b"SELECT", b"n"]), error("Namespace not found"));
    std::fs::remove_file(data.join("n")).unwrap();
    assert_eq!(server.ask(&mut client, &[b"NSNEW", b"n"]), simple("OK"));
    assert_eq!(server.ask(&mut client, &[b"NSDEL", b"n"]), simple("OK"));
    let list = server.ask(&mut client, &[b"NSLIST"]);
    assert_eq!(list, Value::Array(vec![bulk(b"default")]));
}

#[test]
fn two_who_make_the_same_namespace_hear_of_one_another() {
    let mut server = Server::new();
    let (mut one, mut two) = (server.client(), server.client());
    server.send(&mut one, &[b"NSNEW", b"n"]);
    server.send(&mut two, &[b"NSNEW", b"n"]);
    server.send(&mut two, &[b"PING"]);
    let mut third = server.client();
    server.send(&mut third, &[b"NSLIST"]);
    assert_eq!(server.received(&mut third), [Value::Array(vec![bulk(b"default")])]);
    server.run_pending();
    server.deliver(&mut one);
    server.deliver(&mut two);
    assert_eq!(server.received(&mut one), [simple("OK")]);
    let taken = error("This namespace is not available");
    assert_eq!(server.received(&mut two), [taken, simple("PONG")]);
}
