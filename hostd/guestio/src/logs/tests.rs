//! A log, and servers that take it, or don't.

use std::io::{BufReader, Read as _};
use std::net::TcpListener;

use flate2::read::GzDecoder;

use super::sink::tests::begun;
use super::tail::tests::Log;
use super::*;

fn unpacked(piece: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(piece).read_to_string(&mut text).unwrap();
    text
}

impl Log {
    fn sender(&self, url: String) -> Sender<impl Fn() -> Result<Sink, SinkError>> {
        let tls = sink::tls().unwrap();
        let connect = move || begun(&url, &tls);
        Sender { tail: Tail::new(self.path()), connect, sink: None, pause: PAUSE_MIN }
    }
}

/// One command of a client of Redis, as its words.
fn command(from: &mut impl io::BufRead) -> Vec<Vec<u8>> {
    let mut number = |mark: char| -> usize {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line.trim_end().strip_prefix(mark).unwrap().parse().unwrap()
    };
    let count = number('*');
    let mut words = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let size: usize = line.trim_end().strip_prefix('$').unwrap().parse().unwrap();
        let mut word = vec![0; size + 2];
        from.read_exact(&mut word).unwrap();
        word.truncate(size);
        words.push(word);
    }
    words
}

#[test]
fn a_log_is_published_piece_by_piece_and_again_where_it_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://:secret@{}/machine/logs", listener.local_addr().unwrap());
    let log = Log::new();
    log.write("one\n");
    let mut sender = log.sender(url);
    let serving = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // The first connection ends in the middle of a piece, the second takes everything.
        for is_good in [false, true] {
            let (stream, _) = listener.accept().unwrap();
            let mut from = BufReader::new(stream.try_clone().unwrap());
            let mut to = stream;
            assert_eq!(command(&mut from), [b"AUTH".to_vec(), b"secret".to_vec()]);
            to.write_all(b"+OK\r\n").unwrap();
            while is_good && seen.len() < 3 {
                let words = command(&mut from);
                to.write_all(b":1\r\n").unwrap();
                if words[0] == b"PUBLISH" {
                    assert_eq!(words[1], b"machine/logs");
                    seen.push(unpacked(&words[2]));
                }
            }
        }
        seen
    });
    assert_eq!(sender.turn().unwrap(), PAUSE_MIN, "it failed");
    assert_eq!(sender.pause, PAUSE_MIN * 2);
    // The same piece again, with what came since.
    log.write("two\n");
    assert_eq!(sender.turn().unwrap(), Duration::ZERO);
    assert_eq!(sender.turn().unwrap(), LOOK_INTERVAL, "there is no more");
    for text in ["three\n", "four\n"] {
        log.write(text);
        assert_eq!(sender.turn().unwrap(), Duration::ZERO);
    }
    assert_eq!(serving.join().unwrap(), ["one\ntwo\n", "three\n", "four\n"]);
}

#[test]
fn pauses_grow_and_are_bounded() {
    let log = Log::new();
    log.write("x");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut sender = log.sender(format!("redis://127.0.0.1:{port}/x"));
    let pauses: Vec<_> = (0..8).map(|_| sender.turn().unwrap().as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_websocket_gets_binary_messages_and_may_talk() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/in?x=y", listener.local_addr().unwrap());
    let log = Log::new();
    log.write("one\n");
    let mut sender = log.sender(url);
    let (first, seen_first) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut socket = tungstenite::accept(stream).unwrap();
        let mut seen = vec![unpacked(&socket.read().unwrap().into_data())];
        socket.send(tungstenite::Message::text("welcome")).unwrap();
        socket.send(tungstenite::Message::Ping(tungstenite::Bytes::new())).unwrap();
        first.send(()).unwrap();
        while seen.len() < 2 {
            let message = socket.read().unwrap();
            if message.is_binary() {
                seen.push(unpacked(&message.into_data()));
            }
        }
        seen
    });
    assert_eq!(sender.turn().unwrap(), Duration::ZERO);
    seen_first.recv().unwrap();
    log.write("two\n");
    assert_eq!(sender.turn().unwrap(), Duration::ZERO);
    assert_eq!(serving.join().unwrap(), ["one\n", "two\n"]);
}

#[test]
fn a_server_that_babbles_is_left() {
    for answer in [&b"hello\r\n"[..], b"*1\r\n", &[b'+'; 4096]] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}/x", listener.local_addr().unwrap());
        let log = Log::new();
        log.write("x");
        let mut sender = log.sender(url);
        let answer = answer.to_vec();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut from = BufReader::new(stream.try_clone().unwrap());
            command(&mut from);
            let _ = stream.write_all(&answer);
        });
        assert_eq!(sender.turn().unwrap(), PAUSE_MIN);
        assert!(sender.sink.is_none());
        serving.join().unwrap();
    }
}

#[test]
fn a_configuration_that_is_wrong_shows_nothing_secret() {
    let log = Log::new();
    let path = log.path().with_file_name("config.json");
    let say = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Config::read(&path).err().map(|error| format!("{error:#}"))
    };
    let good = r#"{"log":"/l","output":"redis://:hunter2@x/c","name_servers":["8.8.8.8"]}"#;
    assert_eq!(say(good), None);
    for bad in [&good[..40], &good.replace("\"/l\"", "7"), &good.replace("log", "hunter2")] {
        let text = say(bad).unwrap();
        assert!(text.starts_with("line 1, column ") && !text.contains("hunter2"), "{text}");
    }
}
