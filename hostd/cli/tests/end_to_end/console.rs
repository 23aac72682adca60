//! A user looks at a machine's console, and nobody else does.

use std::net::TcpListener;

use tungstenite::handshake::server::{Request, Response};
use tungstenite::{Message, WebSocket};

use crate::world::{World, text};

/// Answers the next client in capitals until it has heard `bye`; what it asked for, and what it typed.
fn serve(listener: &TcpListener) -> (String, Vec<u8>) {
    let mut asked = String::new();
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let note = |request: &Request, answer: Response| {
        asked = request.uri().to_string();
        Ok(answer)
    };
    let stream = listener.accept().unwrap().0;
    let mut socket: WebSocket<_> = tungstenite::accept_hdr(stream, note).unwrap();
    socket.send(Message::binary(&b"login: "[..])).unwrap();
    let mut heard = Vec::new();
    while let Ok(message) = socket.read() {
        let keys = message.into_data();
        heard.extend_from_slice(&keys);
        let _ = socket.send(Message::binary(keys.to_ascii_uppercase()));
        if heard.ends_with(b"bye\n") {
            let _ = socket.close(None);
        }
    }
    (asked, heard)
}

#[test]
fn a_console_is_found_by_its_machines_name_and_used() {
    let world = World::new(&[]);
    let plan = "project: shop\nnetworks: [{name: lan, nodes: [1]}]\n\
                vms: [{name: web, node: 1, network: lan, flist: 'https://hub/x.flist'}]\n";
    let plan = world.file("plan.yaml", plan);
    world.grid(&["deploy", "-f", text(&plan)]).done();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    world.machine.set_console(address);

    let contract = world.contracts()["web"].0.to_string();
    for vm in ["web", &contract] {
        let serving = listener.try_clone().unwrap();
        let serving = std::thread::spawn(move || serve(&serving));
        let said = world.grid_with(&["console", vm], "who\nbye\n").done();
        assert_eq!(said.out, "login: WHO\nBYE\n");
        let (asked, heard) = serving.join().unwrap();
        assert_eq!((asked.as_str(), heard), ("/ws?ticket=ticketweb", b"who\nbye\n".to_vec()));
    }
    let said = world.grid(&["console", "web", "--url"]).done();
    assert_eq!(said.out, format!("http://{address}/?ticket=ticketweb\n"));

    world.grid(&["console", "other"]).failed(&["there is no machine other"]).with(3);
    let lan = world.contracts()["lan"].0.to_string();
    world.grid(&["console", &lan]).failed(&["has no machine"]);
    // Nobody listens any more.
    drop(listener);
    let said = world.grid(&["console", "web"]).failed(&["can't be reached", "mycelium"]);
    assert!(!said.err.contains("ticketweb"), "{}", said.err);
}
