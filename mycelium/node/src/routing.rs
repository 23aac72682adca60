//! The one task that owns the router.
//!
//! It gives the router what links and the data plane report, and does what the router says: control
//! packets to links, routes into the table, answers for packets that waited. Nobody else touches the
//! router; who wants to look at it sends a question ([`Input::Look`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelium_router::{Event, LinkId, LinkInfo, Router, Time, Wanted};
use mycelium_wire::control::Tlv;
use mycelium_wire::identity::{PublicKey, Subnet};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use crate::data::table::{Destination, Prefix, TableWriter};
use crate::data::{DataPlane, Signal};
use crate::link::Link;

/// What reaches the router. Senders wait while it is busy.
pub(crate) enum Input {
    /// A link is there.
    Up(Arc<Link>, LinkInfo),
    /// A link is gone.
    Down(LinkId),
    /// A neighbour said something.
    Received(LinkId, Tlv),
    /// Somebody wants to know something.
    Look(Look),
}

/// A question to the router.
pub(crate) type Look = Box<dyn FnOnce(&View<'_>) + Send>;

/// What a question sees.
pub(crate) struct View<'a> {
    /// The router.
    pub(crate) router: &'a Router,
    /// The links that it knows.
    pub(crate) links: &'a HashMap<LinkId, Arc<Link>>,
    /// The time by its clock.
    pub(crate) now: Time,
}

/// Room for inputs before senders wait.
pub(crate) const INPUT_COUNT_MAX: usize = 256;
/// Room for signals before they are lost.
pub(crate) const SIGNAL_COUNT_MAX: usize = 1024;
/// Inputs and signals that are taken before their effects are carried out.
const BATCH_COUNT_MAX: usize = 64;
/// How often what carries traffic is noticed: links that are heard, routes that are used. Also how
/// often overdue packets are looked for while some wait.
const NOTICE_INTERVAL: Duration = Duration::from_millis(200);

/// The router and what it acts on.
pub(crate) struct Owner {
    router: Router,
    start: Instant,
    links: HashMap<LinkId, Arc<Link>>,
    table: TableWriter,
    plane: Arc<DataPlane>,
    inputs: mpsc::Receiver<Input>,
    signals: mpsc::Receiver<Signal>,
    /// Told to the router, to be asked again at the next notice.
    heard: Vec<Arc<Link>>,
    used: Vec<Arc<Destination>>,
    notice: Option<Instant>,
    /// Told whom packets go to, if somebody wants to know.
    uses: Option<mpsc::Sender<PublicKey>>,
}

/// Why the task woke.
enum Woken {
    Input(Input),
    Signal(Signal),
    Time,
    Stop,
}

impl Owner {
    pub(crate) fn new(
        router: Router,
        table: TableWriter,
        plane: Arc<DataPlane>,
        inputs: mpsc::Receiver<Input>,
        signals: mpsc::Receiver<Signal>,
    ) -> Self {
        Self {
            router,
            start: Instant::now(),
            links: HashMap::new(),
            table,
            plane,
            inputs,
            signals,
            heard: Vec::new(),
            used: Vec::new(),
            notice: None,
            uses: None,
        }
    }

    /// Says from now on whom packets of this node's hosts go to; what there is no room for is lost.
    pub(crate) fn report_uses(&mut self, uses: mpsc::Sender<PublicKey>) {
        self.uses = Some(uses);
    }

    /// Runs until nobody can reach the router any more.
    pub(crate) async fn run(mut self) {
        loop {
            match self.wake().await {
                Woken::Input(input) => self.input(input),
                Woken::Signal(signal) => self.signal(signal),
                Woken::Time => {}
                Woken::Stop => return,
            }
            for _ in 0..BATCH_COUNT_MAX {
                let input = self.inputs.try_recv().map(|input| self.input(input));
                let signal = self.signals.try_recv().map(|signal| self.signal(signal));
                if input.is_err() && signal.is_err() {
                    break;
                }
            }
            let now = self.now();
            if self.router.deadline().is_some_and(|deadline| deadline <= now) {
                self.router.tick(now);
            }
            self.notice();
            self.act();
        }
    }

    async fn wake(&mut self) -> Woken {
        let deadline = self.router.deadline();
        let deadline = deadline.and_then(|deadline| self.start.checked_add(deadline.0));
        let next = deadline.into_iter().chain(self.notice).min();
        let time = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            input = self.inputs.recv() => input.map_or(Woken::Stop, Woken::Input),
            signal = self.signals.recv() => signal.map_or(Woken::Stop, Woken::Signal),
            () = time => Woken::Time,
        }
    }

    fn now(&self) -> Time {
        Time(self.start.elapsed())
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Up(link, info) => {
                self.router.link_up(link.id(), info, now);
                self.links.insert(link.id(), link);
            }
            Input::Down(id) => {
                self.router.link_down(id, now);
                self.links.remove(&id);
            }
            Input::Received(id, tlv) => self.router.received(id, &tlv, now),
            Input::Look(look) => {
                look(&View { router: &self.router, links: &self.links, now });
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        let now = self.now();
        match signal {
            Signal::Wanted(subnet) => {
                let prefix = Prefix::of(subnet.network());
                match self.router.wanted(subnet, now) {
                    Wanted::Refused => self.plane.give_up(prefix),
                    Wanted::Known(_) => self.plane.release(prefix, Instant::now()),
                    Wanted::Asked => {}
                }
                self.wake_later();
            }
            Signal::Used(destination) => {
                self.router.used(destination.prefix.subnet(), now);
                if let Some(uses) = &self.uses
                    && destination.was_used_here()
                {
                    // Traffic that lasts is reported again.
                    let _ = uses.try_send(destination.public_key());
                }
                self.used.push(destination);
                self.wake_later();
            }
            Signal::Astray(subnet, link) => self.router.astray(subnet, link, now),
            Signal::Heard(link) => {
                self.router.heard(link.id(), now);
                self.heard.push(link);
                self.wake_later();
            }
        }
    }

    fn wake_later(&mut self) {
        self.notice.get_or_insert_with(|| Instant::now() + NOTICE_INTERVAL);
    }

    /// Asks links and destinations to say again when there is traffic.
    fn notice(&mut self) {
        let now = Instant::now();
        if self.notice.is_none_or(|at| now < at) {
            return;
        }
        self.notice = None;
        for link in self.heard.drain(..) {
            link.listen();
        }
        // Said once more after the last packet: whoever answers, and is asked nothing any more because the
        // link loses what comes, has sent nothing since, and would notice the silence only much later.
        let since_start = self.now();
        for destination in self.used.drain(..) {
            self.router.used(destination.prefix.subnet(), since_start);
            destination.listen();
        }
        self.plane.sweep(now);
        if !self.plane.is_idle() {
            self.wake_later();
        }
        self.table.forget(now);
    }

    /// Does what the router says.
    fn act(&mut self) {
        while let Some(event) = self.router.poll() {
            match event {
                Event::Send { link, tlv } => {
                    if let Some(link) = self.links.get(&link) {
                        link.send_control(&tlv);
                    }
                }
                Event::Route { subnet, route } => self.route(subnet, route),
                Event::Unreachable(subnet) => self.plane.give_up(Prefix::of(subnet.network())),
                Event::Dead(id) => {
                    if let Some(link) = self.links.remove(&id) {
                        tracing::info!(link = link.description(), "the neighbour is silent");
                        link.close();
                    }
                }
                Event::Renewed(router_id) => {
                    tracing::warn!(%router_id, "somebody forges our announcements: new router id");
                }
            }
        }
    }

    fn route(&mut self, subnet: Subnet, route: Option<mycelium_router::Route>) {
        let now = Instant::now();
        let link = route.and_then(|route| Some((route, self.links.get(&route.link)?)));
        let Some((route, link)) = link else {
            tracing::debug!(%subnet, "no route any more");
            return self.table.lose(subnet, now);
        };
        tracing::debug!(%subnet, link = link.description(), metric = route.metric.0, "route");
        let destination = self.table.set(subnet, &route.router_id, Arc::clone(link));
        if let Some(destination) = destination {
            self.plane.release(destination.prefix, now);
        }
    }
}

/// Asks the router's owner something. `None` when the node stops.
pub(crate) async fn ask<T: Send + 'static>(
    inputs: &mpsc::Sender<Input>,
    question: impl FnOnce(&View<'_>) -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let look: Look = Box::new(move |view| {
        // Who asked may have gone.
        let _ = answer.send(question(view));
    });
    inputs.send(Input::Look(look)).await.ok()?;
    answered.await.ok()
}
