//! The loop with real sockets, and a pretended VMM.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tungstenite::{Message, WebSocket};

use super::*;

/// How long something that should come may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A console that is served, and the folder of its machine.
struct World {
    folder: tempfile::TempDir,
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    serving: Option<JoinHandle<usize>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::new(vec![listener], folder.path().to_owned(), Instant::now());
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let serving = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                server.turn().unwrap();
            }
            server.connections.len()
        });
        Self { folder, address, is_over, serving: Some(serving) }
    }

    fn listen(&self) -> UnixListener {
        let path = self.folder.path().join(SOCKET);
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    fn terminal(&self) -> Terminal {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{}/ws", self.address);
        Terminal { socket: tungstenite::client(url, stream).unwrap().0, seen: Vec::new() }
    }

    /// The answer to a request, whole.
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A server that has not read everything resets the connection after its answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Something has to happen.
        let _ = TcpStream::connect(self.address);
        if let Some(serving) = self.serving.take() {
            let done = serving.join();
            assert!(done.is_ok() || std::thread::panicking());
        }
    }
}

struct Terminal {
    socket: WebSocket<TcpStream>,
    seen: Vec<u8>,
}

impl Terminal {
    fn expect(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            match self.socket.read().unwrap() {
                Message::Binary(bytes) => self.seen.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
    }

    fn is_gone(&mut self) -> bool {
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if machine::is_later(&error) => return false,
                Err(_) => return true,
            }
        }
    }
}

/// The VMM's end of the console, which says `greeting`.
fn answer(listener: &UnixListener, greeting: &str) -> UnixStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let text = format!("HTTP/1.1 101 Switching Protocols\r\n\r\n{greeting}");
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

#[test]
fn terminals_see_and_type_and_the_machine_may_come_and_go() {
    let world = World::new();
    let mut first = world.terminal();
    first.expect("[the machine is not running");
    let listener = world.listen();
    let mut vmm = answer(&listener, "boot\r\nlogin: ");
    first.expect("login: ");
    assert!(String::from_utf8_lossy(&first.seen).contains("[the machine runs]"));

    // Another sees what was said before, and both see what follows.
    let mut second = world.terminal();
    second.expect("boot\r\nlogin: ");
    second.socket.send(Message::binary(&b"ro"[..])).unwrap();
    let mut keys = [0; 2];
    vmm.read_exact(&mut keys).unwrap();
    first.socket.send(Message::text("ot\r")).unwrap();
    let mut more = [0; 3];
    vmm.read_exact(&mut more).unwrap();
    assert_eq!((&keys, &more), (b"ro", b"ot\r"));
    vmm.write_all("grüß Gott \x1b[31m\u{0}".as_bytes()).unwrap();
    first.expect("grüß Gott \x1b[31m\u{0}");
    second.expect("grüß Gott");

    // It crashes and is there again; whoever looks stays.
    drop(vmm);
    second.expect("Gott \x1b[31m\u{0}\r\n[the machine is not running");
    let mut vmm = answer(&listener, "again");
    second.expect("[the machine runs]\r\nagain");

    // When nobody looks, the VMM is let go of.
    first.socket.close(None).unwrap();
    drop(second);
    assert!(first.is_gone());
    assert_eq!(vmm.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn pages_are_served_and_strangers_refused() {
    let world = World::new();
    let page = world.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("/terminal.js"), "{page}");
    assert!(page.contains("default-src 'none'"));
    let script = world.ask("GET /terminal.js HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(script.trim_end().ends_with("else start();"));
    assert!(world.ask("SSH-2.0-OpenSSH_9\r\n").starts_with("HTTP/1.1 400 "));
    let foreign = "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nOrigin: http://evil.example\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert!(world.ask(foreign).starts_with("HTTP/1.1 403 "));
}

#[test]
fn many_visitors_are_bounded_and_keep_nobody_out() {
    let world = World::new();
    let listener = world.listen();
    // They say nothing, or half a request.
    let idle: Vec<_> = (0..40)
        .map(|number| {
            let mut stream = TcpStream::connect(world.address).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /ws HTTP/1.1\r\n").unwrap();
            }
            stream
        })
        .collect();
    let mut terminal = world.terminal();
    let mut vmm = answer(&listener, "here");
    terminal.expect("here");
    // Nine more terminals: those that were silent longest are let go, and the newest works.
    let mut others: Vec<_> = (0..=TERMINAL_COUNT_MAX).map(|_| world.terminal()).collect();
    let newest = others.last_mut().unwrap();
    newest.expect("here");
    newest.socket.send(Message::text("x")).unwrap();
    let mut key = [0];
    vmm.read_exact(&mut key).unwrap();
    assert!(terminal.is_gone());
    drop(idle);
}

#[test]
fn who_does_not_read_holds_up_nobody() {
    let world = World::new();
    let listener = world.listen();
    let mut slow = world.terminal();
    let mut vmm = answer(&listener, "start");
    slow.expect("start");
    let mut quick = world.terminal();
    quick.expect("start");
    // Much more than buffers of sockets and ours hold together.
    let (flood, count) = (vec![b'x'; 64 << 10], 512);
    let reading = std::thread::spawn(move || {
        let mut seen = 0;
        loop {
            let Message::Binary(bytes) = quick.socket.read().unwrap() else { panic!("no bytes") };
            seen += bytes.len();
            if bytes.ends_with(b"end") {
                return seen;
            }
        }
    });
    vmm.set_write_timeout(Some(PATIENCE)).unwrap();
    let started = Instant::now();
    for _ in 0..count {
        vmm.write_all(&flood).unwrap();
    }
    // Said when it has caught up, however fast it is.
    while !reading.is_finished() {
        vmm.write_all(b"end").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(started.elapsed() < PATIENCE * 3, "the quick one is held up");
    }
    let total = flood.len() * count;
    eprintln!("of {total} bytes, {} came in {:?}", reading.join().unwrap(), started.elapsed());
}

/// One who types faster than the guest reads is stopped by the network, and costs bounded memory.
#[test]
fn who_types_too_much_waits() {
    let world = World::new();
    let listener = world.listen();
    let mut terminal = world.terminal();
    let vmm = answer(&listener, "start");
    terminal.expect("start");
    terminal.socket.get_ref().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let piece = vec![b'k'; 60 << 10];
    let mut sent = 0_usize;
    while terminal.socket.send(Message::binary(piece.clone())).is_ok() {
        sent += piece.len();
        assert!(sent < 64 << 20, "it takes everything");
    }
    // The guest reads again, and gets all that was taken.
    let mut read = 0;
    let mut bytes = [0; 64 << 10];
    let mut vmm = vmm;
    while read + piece.len() < sent {
        let size = vmm.read(&mut bytes).unwrap();
        assert!(bytes[..size].iter().all(|byte| *byte == b'k'));
        read += size;
    }
    let _ = terminal.socket.get_ref().shutdown(Shutdown::Both);
    // A message that is too large ends the connection.
    let mut other = world.terminal();
    other.socket.send(Message::binary(vec![b'k'; 65 << 10])).unwrap();
    assert!(other.is_gone());
}

/// The page's own terminal, in a JavaScript engine, where there is one.
#[test]
fn the_page_understands_what_machines_say() {
    let script = r##"
        const { Screen } = require(process.argv[1]);
        const answers = [];
        const screen = new Screen((text) => answers.push(text));
        const line = (row) => screen.lines[row].map((cell) => cell.text).join("").trimEnd();
        const same = (a, b) => { if (a !== b) throw new Error(`${JSON.stringify(a)} is not ${b}`); };
        screen.write("one\r\ntwo\x1b[31m!\x1b[0m\r\n\x1b]0;title\x07three\b\bE\x1b[K");
        same(line(0), "one"); same(line(1), "two!"); same(line(2), "thrE");
        same(screen.lines[1][3].style.front, "#cd3131");
        screen.write("\x1b[6n"); same(answers.pop(), "\x1b[3;5R");
        screen.write("\x1b[2J\x1b[H" + "w".repeat(81)); same(line(1), "w");
        screen.write("\x1b[?1049hother\x1b[?1049l"); same(line(0), "w".repeat(80));
        for (let n = 0; n < 600; n += 1) screen.write(`\r\n${n}`);
        same(line(23), "599"); same(screen.history.length, 500);
        screen.write("\x1b[1;5r\x1b[5;1H\n\n\x1b[r"); same(screen.lines.length, 24);
        // Nonsense of any length does no harm.
        let seed = 7;
        for (let n = 0; n < 200000; n += 1) {
            seed = (seed * 1103515245 + 12345) % 2147483648;
            screen.write("\x1b[0123456789;?hHJKLMPXr@mABCDSTsu78\n\r\bxyz"[seed % 39]);
        }
        same(screen.lines.length, 24);
        same(screen.lines.every((row) => row.length === 80), true);
    "##;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/src/console/terminal.js");
    match Command::new("node").args(["-e", script, program]).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => eprintln!("skipped: the page needs node: {error}"),
    }
}
