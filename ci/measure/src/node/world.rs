//! A grid, a node of it, and who deploys there, in namespaces of their own (`ci/bench` makes them).
//!
//! ```text
//!   devgrid ◄──────── deploy (an example of hostd-node)
//!      ▲ chain, relay, hub
//!   hostd ── supervise ─┬─ flist cached          in a cgroup: the node
//!                       ├─ mycelium, a network's
//!                       └─ vmm: a kernel that sleeps
//! ```

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use supervise::{Client, State};

use super::meter::Meter;
use crate::disk::Disk;
use crate::process::{Daemon, run};
use crate::vmm::null_guest::sleeper;

/// What a node consists of, found on `PATH`.
const PROGRAMS: [&str; 5] = ["vmm", "guestio", "flist", "mycelium", "zdb"];
/// Bytes of the node's disk, a sparse file. Each machine has half a gigabyte of it allocated for its root.
const DISK_SIZE: u64 = 64 << 30;
/// Where sockets are: their names may not be long.
const RUNTIME: &str = "/run/measure";
const SUPERVISOR: &str = "/run/measure/supervise.sock";
const STATUS: &str = "/run/measure/status.sock";
/// The image, at the grid's hub.
const IMAGE: &str = "http://127.0.0.1:9946/hub/measure/guest.fl";
/// How long anything may take to be ready.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long one that deploys may take.
const DEPLOY_TIME_MAX: Duration = Duration::from_secs(400);

/// All of it. What stands on something else comes before it.
pub(super) struct World {
    pub(super) hostd: Daemon,
    pub(super) supervise: Daemon,
    _devgrid: Daemon,
    pub(super) hostd_meter: Meter,
    pub(super) rest_meter: Meter,
    disk: Disk,
}

/// Who deploys, with everything prepared.
pub(super) struct Deployer(Child);

impl World {
    pub(super) fn new() -> anyhow::Result<Self> {
        check_namespaces()?;
        fs::create_dir_all(RUNTIME)?;
        fs::create_dir_all("/run/netns")?;
        let disk = Disk::of(DISK_SIZE)?;
        let folder = disk.path();
        for name in ["pool", "image", "grid"] {
            fs::create_dir(folder.join(name))?;
        }
        fs::write(folder.join("kernel"), sleeper())?;
        fs::write(folder.join("initramfs"), [0; 4096])?;
        fs::write(folder.join("image/init"), "never read")?;
        let grid = folder.join("grid");
        let network = grid.join("network.json");
        let words = ["devgrid".as_ref(), "up".as_ref(), "--dir".as_ref(), grid.as_os_str()];
        let devgrid = Daemon::start(&quiet(&folder, "devgrid", &words), || network.exists())?;
        publish(&folder)?;
        let farm = deploy_command(&folder, &["0", "", "0", "0", "0"])?.output()?;
        let said = String::from_utf8_lossy(&farm.stderr).into_owned();
        ensure!(farm.status.success(), "no farm: {said}");
        let farm = String::from_utf8(farm.stdout)?;

        let (hostd_meter, rest_meter) = (Meter::new("hostd")?, Meter::new("rest")?);
        let words = ["supervise", "--socket", SUPERVISOR];
        let words = rest_meter.command(&folder.join("supervise.log"), &words);
        let supervise = Daemon::start(&words, || Path::new(SUPERVISOR).exists())?;
        fs::write(folder.join("hostd.toml"), config(&folder, farm.trim())?)?;
        let hostd = start_hostd(&folder, &hostd_meter)?;
        Ok(Self { hostd, supervise, _devgrid: devgrid, hostd_meter, rest_meter, disk })
    }

    /// Milliseconds of processor time of the node so far: hostd and all that it and the supervisor started.
    pub(super) fn used_ms(&self) -> anyhow::Result<f64> {
        Ok(self.hostd_meter.used_ms()? + self.rest_meter.used_ms()?)
    }

    /// Ends hostd as a crash does, and starts it again.
    pub(super) fn restart_hostd(&mut self) -> anyhow::Result<()> {
        self.hostd.kill()?;
        self.hostd = start_hostd(&self.folder(), &self.hostd_meter)?;
        Ok(())
    }

    /// Names and processes of machines that run, and how often each was started again.
    pub(super) fn machines(&self) -> anyhow::Result<Vec<(String, u32, u64)>> {
        let all = Client::connect(SUPERVISOR)?.list()?.into_iter();
        let running = all.filter(|one| one.state == State::Running && one.name.starts_with("vm-"));
        Ok(running.filter_map(|one| Some((one.name, one.pid?, one.restarts))).collect())
    }

    /// Prepares so many people who deploy so many machines and volumes each.
    pub(super) fn deployer(&self, counts: [u8; 3]) -> anyhow::Result<Deployer> {
        let [users, machines, volumes] = counts.map(|count| count.to_string());
        let mut command =
            deploy_command(&self.folder(), &["1", IMAGE, &users, &machines, &volumes])?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = Vec::new();
        // Byte by byte, so that what follows is left for later.
        while !said.ends_with(b"\n") {
            let mut byte = [0];
            let out = child.stdout.as_mut().context("no output")?;
            if out.read(&mut byte)? == 0 {
                bail!("who was to deploy ended: {}", child.wait()?);
            }
            said.extend(byte);
        }
        Ok(Deployer(child))
    }

    /// Milliseconds that `vmm run` alone takes for a machine of this node, from its start until it says
    /// that its guest runs: the first machine, which is stopped for that and stays so. The least of some.
    pub(super) fn alone_ms(&self, rounds: u32) -> anyhow::Result<f64> {
        let folder = first(&self.folder().join("machine/vms"))?;
        let description = folder.join("vm.json");
        let spec: Value = serde_json::from_slice(&fs::read(&description)?)?;
        let socket = PathBuf::from(spec["api_socket"].as_str().context("no api_socket")?);
        let name = socket.parent().and_then(Path::file_name).context("a socket's folder")?;
        let name = name.to_string_lossy().into_owned();
        let supervisor = Client::connect(SUPERVISOR)?;
        supervisor.stop(&format!("vm-{name}"), Duration::ZERO)?;
        let namespace = format!("--net={}", first(Path::new("/run/netns"))?.display());
        let meter = Meter::new("alone")?;
        let mut least = f64::INFINITY;
        for _ in 0..rounds {
            let _ = fs::remove_file(&socket);
            let words = ["nsenter", &namespace, "vmm", "run", "--config"].map(OsStr::new);
            let words = [words.as_slice(), &[description.as_os_str()]].concat();
            let before = meter.used_ms()?;
            let command = meter.command(&self.folder().join("alone.log"), &words);
            let mut vmm = Daemon::start(&command, || socket.exists())?;
            await_running(&socket)?;
            least = least.min(meter.used_ms()? - before);
            vmm.kill()?;
            thread::sleep(Duration::from_millis(300));
        }
        Ok(least)
    }

    /// Where the grid says where it is.
    pub(super) fn network(&self) -> PathBuf {
        self.folder().join("grid/network.json")
    }

    fn folder(&self) -> PathBuf {
        self.disk.path()
    }
}

impl Deployer {
    /// Lets them send everything; what they saw, by name, once all of it runs.
    pub(super) fn go(mut self) -> anyhow::Result<Vec<(String, f64)>> {
        self.0.stdin.take().context("no input")?.write_all(b"\n")?;
        let begin = Instant::now();
        while self.0.try_wait()?.is_none() {
            if begin.elapsed() > DEPLOY_TIME_MAX {
                self.0.kill()?;
                bail!("not deployed within {DEPLOY_TIME_MAX:?}");
            }
            thread::sleep(Duration::from_millis(2));
        }
        ensure!(self.0.wait()?.success(), "not deployed");
        let out = BufReader::new(self.0.stdout.take().context("no output")?);
        let figures = out.lines().map(|line| {
            let line = line?;
            let (what, value) = line.split_once('\t').with_context(|| line.clone())?;
            Ok((what.to_owned(), value.parse()?))
        });
        figures.collect()
    }
}

/// Machines' networks come and go, and so do names below `/run`: not those of who measures.
fn check_namespaces() -> anyhow::Result<()> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let others = devices.lines().skip(2).filter(|line| !line.trim_start().starts_with("lo:"));
    ensure!(others.count() == 0, "run `ci/bench node`, which makes a network namespace for this");
    Ok(())
}

/// A command line with its errors in a file.
fn quiet(folder: &Path, name: &str, words: &[&OsStr]) -> Vec<std::ffi::OsString> {
    let script = r#"exec 2>>"$0" && exec "$@""#;
    let mut all = vec!["/bin/sh".into(), "-c".into(), script.into()];
    all.push(folder.join(format!("{name}.log")).into_os_string());
    all.extend(words.iter().map(|word| (*word).to_owned()));
    all
}

/// Packs an image of one file, and puts it where the grid's hub serves it.
fn publish(folder: &Path) -> anyhow::Result<()> {
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let store = format!("dir://{}", at("blocks"));
    run(&["flist", "pack", &at("image"), "-o", &at("guest.fl"), "--store", &store])?;
    run(&["flist", "push", &at("guest.fl"), &at("grid/hub"), "--user", "measure"])?;
    Ok(())
}

fn deploy_command(folder: &Path, arguments: &[&str; 5]) -> anyhow::Result<Command> {
    let mut command = Command::new(program("deploy")?);
    command.arg(folder.join("grid/network.json")).args(arguments);
    Ok(command)
}

fn start_hostd(folder: &Path, meter: &Meter) -> anyhow::Result<Daemon> {
    let config = folder.join("hostd.toml");
    let words = ["hostd".as_ref(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
    let log = folder.join("hostd.log");
    let hostd = Daemon::start(&meter.command(&log, &words), || Path::new(STATUS).exists())?;
    let begin = Instant::now();
    while !is_ready()? {
        if begin.elapsed() > PATIENCE {
            bail!("the node is not ready: {}", fs::read_to_string(log)?);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(hostd)
}

/// Whether the node is registered and reachable, and has compared everything.
fn is_ready() -> anyhow::Result<bool> {
    let asked = Command::new("hostd").args(["status", "--json", "--socket", STATUS]).output()?;
    let status: Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
    let node = &status["node"];
    Ok(node["relay_count"] == 1 && node["duties"]["comparison"]["done_at"].is_number())
}

fn config(folder: &Path, farm: &str) -> anyhow::Result<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut programs = String::new();
    for name in PROGRAMS {
        programs.push_str(&format!("{name} = \"{}\"\n", program(name)?.display()));
    }
    Ok(format!(
        r#"
state = "{}"
network = "{}"
farm = {farm}
status = "{STATUS}"
[place]
country_name = "Belgium"
city_name = "Ghent"
latitude = 51.05
longitude = 3.72
[machine]
state = "{}"
runtime = "{RUNTIME}/hostd"
supervisor = "{SUPERVISOR}"
pools = [{{ name = "ssd", path = "{}", kind = "ssd" }}]
[machine.programs]
{programs}
[machine.guest]
kernel = "{}"
initramfs = "{}"
[machine.images]
allow_routes = ["local"]
"#,
        at("hostd"),
        at("grid/network.json"),
        at("machine"),
        at("pool"),
        at("kernel"),
        at("initramfs"),
    ))
}

/// A program on `PATH`.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no program {name}"))
}

/// Some entry of a folder.
fn first(folder: &Path) -> anyhow::Result<PathBuf> {
    let entry = fs::read_dir(folder)?.next().with_context(|| format!("{folder:?} is empty"))??;
    Ok(entry.path())
}

/// Waits until a VMM says that its guest runs.
fn await_running(socket: &Path) -> anyhow::Result<()> {
    let request = b"GET /vm HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let mut answer = Vec::new();
        let asked = std::os::unix::net::UnixStream::connect(socket).and_then(|mut stream| {
            stream.write_all(request)?;
            stream.read_to_end(&mut answer)
        });
        if asked.is_ok() && String::from_utf8_lossy(&answer).contains("\"running\"") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("{} does not run", socket.display())
}
