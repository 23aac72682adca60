//! A machine's console and log, with the programs that carry them: who reaches them, from where, and what
//! is left. The VMM is pretended; its console answers what is typed in capitals.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hostd_exec::guestio::logs::Order;
use hostd_exec::guestio::{GuestIo, GuestIoConfig};
use hostd_exec::network::{Attachment, Networks};
use hostd_grid::Name;
use hostd_grid::derived::{NetworkId, WorkloadId};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tungstenite::{Message, WebSocket};

use crate::world::{World, ip, is_possible, network, workload};

/// How long something that should come may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Another machine of the network.
const NEIGHBOUR: &str = "10.20.2.9";
/// Somebody on mycelium.
const FAR: &str = "4ff::7";

/// A network with a machine in it, one beside it, and somebody far away.
struct Scene {
    node: Node,
    networks: Networks,
    machine: WorkloadId,
    attachment: Attachment,
    /// Names of namespaces.
    beside: String,
    far: String,
    world: World,
}

struct Node {
    supervisor: supervise::Client,
    process: Child,
    guestio: GuestIo,
}

impl Node {
    fn start(folder: &Path) -> Option<Self> {
        let (supervise, guestio) = (program("supervise")?, program("guestio")?);
        let socket = folder.join("supervise.sock");
        let mut command = Command::new(supervise);
        let process = command.arg("--socket").arg(&socket).stderr(Stdio::null()).spawn().unwrap();
        let supervisor =
            until("the supervisor serves", || supervise::Client::connect(&socket).ok());
        let config = GuestIoConfig { program: guestio, logs: folder.join("zlogs") };
        let guestio = GuestIo::open(config, supervisor.clone()).unwrap();
        Some(Self { supervisor, process, guestio })
    }

    fn pid_of(&self, prefix: &str) -> Option<u32> {
        let found = self.supervisor.list().unwrap();
        found.into_iter().find(|status| status.name.starts_with(prefix))?.pid
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Programs die with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test.parent()?.parent()?.join(name);
    if !path.is_file() {
        eprintln!("skipped: {} is not built", path.display());
        return None;
    }
    Some(path)
}

fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = is_so() {
            return value;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Scene {
    fn new() -> Option<Self> {
        if !is_possible() {
            return None;
        }
        let world = World::new();
        let node = Node::start(world.folder.path())?;
        let networks = world.open();
        for twin in [11, 12] {
            let key = u8::try_from(twin).unwrap();
            networks.provision(&workload(twin, "net1"), &network("10.20.2.0/24", key)).unwrap();
        }
        let machine = workload(11, "vm1");
        let address = Some([10, 20, 2, 5].into());
        let attachment =
            networks.attach(&Name::new("net1"), &machine, address, Some([1; 6])).unwrap();
        let id = NetworkId::of(machine.twin_id, &Name::new("net1"));
        let names = ["b", "f"].map(|end| {
            let process = std::process::id();
            let folder = world.folder.path().file_name().unwrap().to_string_lossy().into_owned();
            format!("zc{process}{}{end}", folder.replace('.', ""))
        });
        let scene = Self {
            node,
            networks,
            machine,
            attachment,
            beside: names[0].clone(),
            far: names[1].clone(),
            world,
        };
        let (beside, far) = (&scene.beside, &scene.far);
        let gateway = scene.attachment.console_address;
        ip(&format!("netns add {beside}"));
        ip(&format!("netns add {far}"));
        // A machine's wire, and mycelium's, without their programs.
        scene.inside(&format!("link add vt0 type veth peer name eth0 netns {beside}"));
        scene.inside(&format!("link set vt0 master {} up", id.light_bridge()));
        scene.inside(&format!("link add my0 type veth peer name eth0 netns {far}"));
        scene.inside("link set my0 address 02:00:00:00:00:01 up");
        for command in [
            format!("-n {beside} addr add {NEIGHBOUR}/24 dev eth0"),
            format!("-n {beside} link set eth0 up"),
            format!("-n {far} link set eth0 address 02:00:00:00:00:02 up"),
            format!("-n {far} addr add {FAR}/7 dev eth0 nodad"),
            format!("-n {far} neigh add {gateway} lladdr 02:00:00:00:00:01 dev eth0"),
        ] {
            ip(&command);
        }
        scene.inside("route add 400::/7 dev my0");
        scene.inside(&format!("neigh add {FAR} lladdr 02:00:00:00:00:02 dev my0"));
        Some(scene)
    }

    /// Runs `ip` in the network's namespace.
    fn inside(&self, arguments: &str) {
        let net = format!("--net={}", self.attachment.namespace.display());
        let mut command = Command::new("nsenter");
        let output = command.arg(net).arg("ip").args(arguments.split(' ')).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {complaint}");
    }

    fn private(&self) -> SocketAddr {
        "10.20.2.1:20005".parse().unwrap()
    }

    fn mycelium(&self) -> SocketAddr {
        SocketAddr::new(self.attachment.console_address.into(), 20005)
    }

    fn runtime(&self) -> PathBuf {
        self.world.folder.path().join("runtime")
    }

    fn serve(&self) {
        let (runtime, state) = (self.runtime(), self.world.folder.path());
        let addresses = [self.mycelium(), self.private()];
        let namespace = &self.attachment.namespace;
        let served = self.node.guestio.serve_console(
            &self.machine,
            (&runtime, state),
            namespace,
            &addresses,
        );
        served.unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for name in [&self.beside, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Does something in a namespace.
fn within<T: Send + 'static>(namespace: &Path, act: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(namespace).unwrap();
    let work = move || {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network).unwrap();
        act()
    };
    std::thread::spawn(work).join().unwrap()
}

fn named(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// A terminal from there; or the status of the answer, or none if nobody answers.
fn terminal(
    namespace: &Path,
    address: SocketAddr,
    ticket: &str,
) -> Result<WebSocket<TcpStream>, Option<u16>> {
    let query = if ticket.is_empty() { String::new() } else { format!("?ticket={ticket}") };
    within(namespace, move || {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2));
        let stream = stream.map_err(|_| None)?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match tungstenite::client(format!("ws://{address}/ws{query}"), stream) {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                Err(Some(answer.status().as_u16()))
            }
            Err(error) => panic!("{error}"),
        }
    })
}

fn expect(socket: &mut WebSocket<TcpStream>, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        match socket.read() {
            Ok(Message::Binary(bytes)) => seen.extend_from_slice(&bytes),
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A VMM's console for as long as the test runs.
fn pretend_vmm(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).is_ok_and(|size| size > 0)
                {
                    head.extend(byte);
                }
                let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\nlogin: ");
                let mut keys = [0; 256];
                while let Ok(size) = stream.read(&mut keys) {
                    let shout = keys[..size].to_ascii_uppercase();
                    if size == 0 || stream.write_all(&shout).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

#[test]
fn a_console_is_reached_from_its_own_network_and_with_a_ticket() {
    let Some(scene) = Scene::new() else { return };
    fs::create_dir(scene.runtime()).unwrap();
    scene.serve();
    scene.serve();
    let (beside, far) = (named(&scene.beside), named(&scene.far));

    // It is there before its machine, and says so.
    let mut early = until("it listens", || terminal(&beside, scene.private(), "").ok());
    expect(&mut early, "[the machine is not running");
    pretend_vmm(&scene.runtime().join("api.sock"));
    expect(&mut early, "login: ");
    early.send(Message::text("who\r")).unwrap();
    expect(&mut early, "WHO\r");

    // From elsewhere on mycelium, a ticket is needed, which is good once.
    assert_eq!(terminal(&far, scene.mycelium(), "").err(), Some(Some(403)));
    let ticket = scene.node.guestio.ticket(&scene.runtime()).unwrap();
    let mut owner = terminal(&far, scene.mycelium(), &ticket).unwrap();
    expect(&mut owner, "login: WHO\r");
    owner.send(Message::binary(&b"am i\r"[..])).unwrap();
    expect(&mut owner, "AM I\r");
    expect(&mut early, "AM I\r");
    assert_eq!(terminal(&far, scene.mycelium(), &ticket).err(), Some(Some(403)));

    // Not from the node, nor from the network of somebody else, which has the same addresses.
    let other = scene.networks.namespace(workload(12, "net1").twin_id, &Name::new("net1"));
    for (namespace, address) in [
        (other.unwrap(), scene.private()),
        (scene.world.config().uplink, scene.private()),
        (scene.world.config().uplink, scene.mycelium()),
        (far.clone(), scene.private()),
    ] {
        assert_eq!(terminal(&namespace, address, "").err(), Some(None), "{namespace:?} {address}");
    }
    jailed(&scene);

    // Killed, it is there again; who looks connects again.
    let pid = scene.node.pid_of("console-").unwrap();
    kill(pid);
    until("it is there again", || scene.node.pid_of("console-").filter(|new| *new != pid));
    let mut again = until("it listens", || terminal(&beside, scene.private(), "").ok());
    expect(&mut again, "login: ");

    scene.node.guestio.close_console(&scene.machine).unwrap();
    scene.node.guestio.close_console(&scene.machine).unwrap();
    assert_eq!(scene.node.pid_of("console-"), None);
    assert_eq!(terminal(&beside, scene.private(), "").err(), Some(None));
    scene.networks.detach(&scene.machine).unwrap();
}

/// Who takes the process over has a folder and no rights.
fn jailed(scene: &Scene) {
    let pid = scene.node.pid_of("console-").unwrap();
    let root = fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(root, fs::canonicalize(scene.runtime()).unwrap());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{status}");
    }
    assert!(status.contains("Seccomp:\t2") && status.contains("Threads:\t1"), "{status}");
    let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    eprintln!("a console's memory: {memory}");
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Pieces that a server in the machine's network is sent, as they come.
fn pretend_redis(namespace: &Path, address: SocketAddr) -> std::sync::mpsc::Receiver<String> {
    let listener = within(namespace, move || TcpListener::bind(address).unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut to = stream.try_clone().unwrap();
            let mut from = BufReader::new(stream);
            while let Some(words) = command(&mut from) {
                let mut text = String::new();
                if let [name, channel, piece] = words.as_slice() {
                    assert_eq!(
                        (name.as_slice(), channel.as_slice()),
                        (&b"PUBLISH"[..], &b"logs"[..])
                    );
                    flate2::read::GzDecoder::new(piece.as_slice())
                        .read_to_string(&mut text)
                        .unwrap();
                }
                if to.write_all(b":1\r\n").is_err() || tell.send(text).is_err() {
                    break;
                }
            }
        }
    });
    told
}

/// The words of a command; none at the end.
fn command(from: &mut impl std::io::BufRead) -> Option<Vec<Vec<u8>>> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    let count: usize = line.trim_end().strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let size: usize = line.trim_end().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; size + 2];
        from.read_exact(&mut word).ok()?;
        word.truncate(size);
        words.push(word);
    }
    Some(words)
}

#[test]
fn a_log_is_sent_to_a_server_of_its_network_until_it_is_not_paid() {
    let Some(scene) = Scene::new() else { return };
    let guestio = &scene.node.guestio;
    let folder = scene.world.folder.path().join("log");
    fs::create_dir(&folder).unwrap();
    let log = folder.join("console.log");
    let say = |text: &str| {
        let mut file = File::options().create(true).append(true).open(&log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let address = SocketAddr::new(NEIGHBOUR.parse::<IpAddr>().unwrap(), 7000);
    let pieces = pretend_redis(&named(&scene.beside), address);
    let output = format!("redis://{address}/logs");
    let order = |output| Order {
        log: log.clone(),
        output,
        name_servers: &[],
        namespace: scene.attachment.namespace.clone(),
    };
    let id = workload(11, "logs");
    let next = || {
        let said = scene.world.folder.path().join("zlogs").join(id.to_string()).join("guestio.log");
        let piece = pieces.recv_timeout(PATIENCE);
        piece.unwrap_or_else(|_| panic!("{}", fs::read_to_string(said).unwrap_or_default()))
    };

    say("one\n");
    guestio.send_log(&id, &order(&output)).unwrap();
    guestio.send_log(&id, &order(&output)).unwrap();
    assert_eq!(next(), "one\n");
    say("two\n");
    assert_eq!(next(), "two\n");
    assert_eq!(guestio.logs().unwrap(), std::slice::from_ref(&id));

    guestio.pause_log(&id).unwrap();
    guestio.pause_log(&id).unwrap();
    say("three\n");
    assert_eq!(scene.node.pid_of("zlogs-"), None);
    // Found again, and still paused; nobody takes it for lost.
    guestio.send_log(&id, &order(&output)).unwrap();
    assert_eq!((scene.node.pid_of("zlogs-"), guestio.logs().unwrap()), (None, vec![id.clone()]));
    guestio.resume_log(&id, &order(&output)).unwrap();
    assert!(next().ends_with("three\n"));

    // The password is the process's alone, and is in no argument.
    let pid = scene.node.pid_of("zlogs-").unwrap();
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!arguments.contains("redis"), "{arguments}");
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).unwrap(), folder);

    for (wrong, expected) in [
        ("redis://10.20.2.9:25/x", "output: port 25 is for mail, which is not sent from here"),
        ("redis://10.20.2.9", "output: a redis URL ends with a channel: redis://host/channel"),
    ] {
        let error = guestio.send_log(&workload(11, "wrong"), &order(wrong)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        guestio.remove_log(&workload(11, "wrong")).unwrap();
    }
    guestio.remove_log(&id).unwrap();
    guestio.remove_log(&id).unwrap();
    assert_eq!((scene.node.pid_of("zlogs-"), guestio.logs().unwrap()), (None, vec![]));
    assert_eq!(fs::read_dir(scene.world.folder.path().join("zlogs")).unwrap().count(), 0);
}
