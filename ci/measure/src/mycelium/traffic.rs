//! What overlays carry while they are watched: bulk by iperf3, and datagrams that come back.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::lab::{Lab, PATIENCE, bind, joined};
use super::overlay::Line;
use crate::process::Daemon;

/// Port of [`Echo`].
const ECHO_PORT: u16 = 7;
/// How long a datagram may take.
const ANSWER_WAIT: Duration = Duration::from_millis(100);

/// How much iperf3 is to send.
#[derive(Clone, Copy)]
pub(super) enum Amount {
    Seconds(u32),
    MiB(u32),
}

/// Which way it goes.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    /// From the first node to the last.
    There,
    /// From the last node to the first.
    Back,
}

/// What bulk traffic came to.
pub(super) struct Bulk {
    pub(super) gigabits: f64,
    pub(super) gigabits_per_second: f64,
    /// Processor seconds of each node for a gigabit; the sender first.
    pub(super) costs: Vec<f64>,
}

/// Sends one TCP stream from end to end of a line.
pub(super) fn bulk(line: &Line, amount: Amount, way: Way) -> anyhow::Result<Bulk> {
    let _server = Server::start(line)?;
    let before = line.processor_seconds()?;
    let report = finished(client(line, amount, way)?)?;
    let after = line.processor_seconds()?;
    let received = &report["end"]["sum_received"];
    let bytes = received["bytes"].as_f64().context("iperf3 counted no bytes")?;
    let rate = received["bits_per_second"].as_f64().unwrap_or_default();
    let gigabits = bytes * 8.0 / 1e9;
    let mut costs: Vec<f64> =
        before.iter().zip(&after).map(|(before, after)| (after - before) / gigabits).collect();
    if way == Way::Back {
        costs.reverse();
    }
    Ok(Bulk { gigabits, gigabits_per_second: rate / 1e9, costs })
}

/// Round trips from end to end while a TCP stream takes all that there is room for.
pub(super) fn under_load(line: &Line, seconds: u32) -> anyhow::Result<Pings> {
    let last = line.last();
    let address = line.nodes[last].address;
    let _server = Server::start(line)?;
    let echo = Echo::start(&line.lab, last, address);
    let load = client(line, Amount::Seconds(seconds), Way::There)?;
    // The stream finds its pace first.
    thread::sleep(Duration::from_secs(1));
    let count = (seconds - 2) * 50;
    let pings = ping(&line.lab, 0, address, Pace { gap: Duration::from_millis(20), count });
    let pings = joined(pings)?;
    finished(load)?;
    echo.stop()?;
    Ok(pings)
}

/// iperf3's server at the far end of a line.
struct Server(#[expect(dead_code, reason = "runs until it is dropped")] Daemon);

impl Server {
    fn start(line: &Line) -> anyhow::Result<Self> {
        let log = line.lab.path("iperf3.log").display().to_string();
        let words = line.lab.inside(line.last(), &["iperf3", "--server", "--logfile", &log]);
        // A client that is too early asks again.
        Ok(Self(Daemon::start(&words, || true)?))
    }
}

/// Starts iperf3's client at the near end. The server may be a moment late, so it waits a little.
fn client(line: &Line, amount: Amount, way: Way) -> anyhow::Result<Child> {
    let address = line.nodes[line.last()].address.to_string();
    let amount = match amount {
        Amount::Seconds(seconds) => ["--time".to_owned(), seconds.to_string()],
        Amount::MiB(count) => ["--bytes".to_owned(), format!("{count}M")],
    };
    let mut words = vec!["iperf3", "--json", "--connect-timeout", "5000", "--client", &address];
    words.extend(amount.iter().map(String::as_str));
    if way == Way::Back {
        words.push("--reverse");
    }
    wait_for_port(line, 5201)?;
    let words = line.lab.inside(0, &words);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command.spawn()?)
}

/// Waits until somebody listens at the far end.
fn wait_for_port(line: &Line, port: u16) -> anyhow::Result<()> {
    let filter = format!("sport = :{port}");
    let begin = Instant::now();
    loop {
        let shown = line.lab.run(line.last(), &["ss", "-Hltn", &filter])?;
        if !shown.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            bail!("nobody listens on port {port}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn finished(client: Child) -> anyhow::Result<Value> {
    let output = client.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
    match report["error"].as_str() {
        Some(error) => bail!("iperf3: {error}"),
        None => Ok(report),
    }
}

/// Sends back what it gets, at one node's address.
pub(super) struct Echo {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Echo {
    /// Begins as soon as the address is there.
    pub(super) fn start(lab: &Lab, at: usize, address: Ipv6Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = lab.within(at, move || {
            let socket = bind(SocketAddr::from((address, ECHO_PORT)))?;
            socket.set_read_timeout(Some(ANSWER_WAIT))?;
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                // It waits for a while only, and what can't go back is lost.
                if let Ok((size, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..size], from);
                }
            }
            Ok(())
        });
        Self { stop, thread }
    }

    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        joined(self.thread)
    }
}

/// How many datagrams, and how far apart.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) gap: Duration,
    pub(super) count: u32,
}

/// What became of datagrams.
#[derive(Default)]
pub(super) struct Pings {
    /// Round trips of those that came back in time, the shortest first.
    round_trips: Vec<Duration>,
    sent_count: u32,
    /// Longest run that nobody answered.
    pub(super) lost_in_a_row: u32,
}

impl Pings {
    /// The round trip in milliseconds that this share of all datagrams did not exceed; infinite where
    /// so many never came back.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let enough = share * f64::from(self.sent_count);
        let found = (1_u32..).zip(&self.round_trips).find(|(n, _)| f64::from(*n) >= enough);
        found.map_or(f64::INFINITY, |(_, round_trip)| round_trip.as_secs_f64() * 1e3)
    }
}

/// Sends datagrams to an [`Echo`], and waits for each at most until the next is due.
pub(super) fn ping(
    lab: &Lab,
    from: usize,
    to: Ipv6Addr,
    pace: Pace,
) -> JoinHandle<anyhow::Result<Pings>> {
    lab.within(from, move || {
        let socket = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
        let wait = pace.gap.max(ANSWER_WAIT);
        let (mut pings, mut lost) = (Pings::default(), 0);
        for number in 0..pace.count {
            let begin = Instant::now();
            pings.sent_count += 1;
            // There is no route before the device has its address.
            let _ = socket.send_to(&number.to_be_bytes(), (to, ECHO_PORT));
            match answer(&socket, number, begin, wait)? {
                Some(round_trip) => {
                    pings.round_trips.push(round_trip);
                    lost = 0;
                }
                None => {
                    lost += 1;
                    pings.lost_in_a_row = pings.lost_in_a_row.max(lost);
                }
            }
            thread::sleep(pace.gap.saturating_sub(begin.elapsed()));
        }
        pings.round_trips.sort_unstable();
        Ok(pings)
    })
}

/// Waits for the answer with this number.
fn answer(
    socket: &std::net::UdpSocket,
    number: u32,
    begin: Instant,
    wait: Duration,
) -> anyhow::Result<Option<Duration>> {
    let mut buffer = [0; 64];
    loop {
        let left = wait.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(4) if buffer[..4] == number.to_be_bytes() => return Ok(Some(begin.elapsed())),
            // One that came late.
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
    }
}

/// How long it takes from now until somebody answers, asked each 10 ms.
pub(super) fn first_answer(
    lab: &Lab,
    from: usize,
    to: Ipv6Addr,
) -> JoinHandle<anyhow::Result<Duration>> {
    let begin = Instant::now();
    lab.within(from, move || {
        let socket = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(10)))?;
        let mut buffer = [0; 64];
        while begin.elapsed() < PATIENCE {
            let _ = socket.send_to(b"first", (to, ECHO_PORT));
            if socket.recv(&mut buffer).is_ok() {
                return Ok(begin.elapsed());
            }
        }
        bail!("{to} does not answer in {PATIENCE:?}")
    })
}
