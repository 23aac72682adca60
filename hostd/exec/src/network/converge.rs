//! Bringing a network to what it should be, and taking it down.
//!
//! Work is done in two namespaces, the network's and the uplink's, each by a thread that enters it. The
//! order matters: rules are loaded before a link that they are for is started, on both sides.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::PoisonError;

use hostd_grid::derived::NetworkId;

use super::address::{self, Member};
use super::layout::{Layout, PUBLIC, Setting, UPLINK_PREFIX, uplink_name};
use super::namespace::{self, Namespace};
use super::netlink::Netlink;
use super::plan::{Found, Kind, Step, plan};
use super::record::Record;
use super::rules::Counter;
use super::{NetworkError, Networks, mycelium, nft, rules};

/// What failed, and why.
struct Failure {
    step: String,
    source: io::Error,
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self { step: "enter its namespace".to_owned(), source }
    }
}

/// Says what was tried when something failed.
trait Trying<T> {
    fn trying(self, step: impl ToString) -> Result<T, Failure>;
}

impl<T> Trying<T> for io::Result<T> {
    fn trying(self, step: impl ToString) -> Result<T, Failure> {
        self.map_err(|source| Failure { step: step.to_string(), source })
    }
}

impl Networks {
    /// Makes everything of a network as it should be, with the members that `edit` leaves.
    pub(super) fn converge(
        &self,
        id: &NetworkId,
        record: &Record,
        edit: impl FnOnce(&mut Vec<Member>) -> Result<(), NetworkError>,
    ) -> Result<Layout, NetworkError> {
        let name = id.light_namespace();
        let inside = Namespace::find_or_make(&self.config.namespaces, &name).map_err(|source| {
            refused(id)(Failure { step: format!("make namespace {name}"), source })
        })?;
        let found = self.links_in(&inside).map_err(refused(id))?;
        let mut members = found.iter().filter_map(member).collect();
        edit(&mut members)?;
        let layout =
            Layout { id: id.clone(), subnet: record.subnet, mycelium: record.mycelium, members };
        let lease = self.lay_line(&inside, &layout, &found)?;
        inside.run(|| self.furnish(&layout, lease)).map_err(refused(id))?;
        Ok(layout)
    }

    /// Whether a network has its namespace.
    pub(super) fn has_namespace(&self, id: &NetworkId) -> Result<bool, NetworkError> {
        let found = Namespace::find(&self.config.namespaces, &id.light_namespace());
        Ok(found.trying("find its namespace").map_err(refused(id))?.is_some())
    }

    /// Who is attached to a network.
    pub(super) fn members(&self, id: &NetworkId) -> Result<Vec<Member>, NetworkError> {
        let name = id.light_namespace();
        let find = || Namespace::find(&self.config.namespaces, &name).trying("find its namespace");
        match find().map_err(refused(id))? {
            Some(inside) => {
                let found = self.links_in(&inside).map_err(refused(id))?;
                Ok(found.iter().filter_map(member).collect())
            }
            None => Ok(Vec::new()),
        }
    }

    /// Removes all of a network, however much of it is there.
    pub(super) fn take_down(&self, id: &NetworkId) -> Result<(), NetworkError> {
        self.services.stop(&mycelium::name(id))?;
        let uplink = uplink_name(id);
        let remove = || {
            Netlink::open().and_then(|links| links.remove(&uplink)).trying("remove its line")?;
            nft::load(&self.config.nft, &rules::nothing_outside(&uplink)).trying("remove its rules")
        };
        self.uplink.run(remove).map_err(refused(id))?;
        let (folder, name) = (&self.config.namespaces, id.light_namespace());
        let clear = || {
            if let Some(inside) = Namespace::find(folder, &name).trying("find its namespace")? {
                // Programs of the owner may still be in it, and must find nothing there.
                inside.run(strip)?;
            }
            namespace::remove(folder, &name).trying("remove its namespace")
        };
        clear().map_err(refused(id))?;
        self.records.remove(id)
    }

    /// What the machines of a network exchanged with the Internet.
    pub(super) fn counted(&self, id: &NetworkId) -> Result<Vec<(Member, u64)>, NetworkError> {
        let name = id.light_namespace();
        let find = || Namespace::find(&self.config.namespaces, &name).trying("find its namespace");
        let Some(inside) = find().map_err(refused(id))? else { return Ok(Vec::new()) };
        let members = self.members(id)?;
        let counters = inside.run(|| self.counters()).map_err(refused(id))?;
        let bytes = |member: &Member| {
            counters.iter().find(|counter| counter.name == member.tap).map(|counter| counter.bytes)
        };
        Ok(members.into_iter().filter_map(|one| bytes(&one).map(|bytes| (one, bytes))).collect())
    }

    /// Counters in the calling thread's namespace.
    fn counters(&self) -> Result<Vec<Counter>, Failure> {
        let listed = nft::list(&self.config.nft, &["counters"]).trying("list its counters")?;
        Ok(rules::read_counters(&listed))
    }

    fn links_in(&self, namespace: &Namespace) -> Result<Vec<Found>, Failure> {
        namespace.run(|| Netlink::open().and_then(|links| links.links()).trying("list its links"))
    }

    /// Connects a network with the node, and says at which address.
    fn lay_line(
        &self,
        inside: &Namespace,
        layout: &Layout,
        found: &[Found],
    ) -> Result<Ipv4Addr, NetworkError> {
        let _leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = || refused(&layout.id);
        let name = uplink_name(&layout.id);
        let outer = self.links_in(&self.uplink).map_err(failed())?;
        let has_inner = found.iter().any(|link| link.name == PUBLIC && link.kind == Kind::Pair);
        let own = outer.iter().find(|link| link.name == name);
        let is_laid = has_inner && own.is_some_and(|own| own.kind == Kind::Pair);
        let lease = own
            .and_then(lease_of)
            .or_else(|| {
                let taken: Vec<_> = outer.iter().filter_map(lease_of).collect();
                address::lease(layout.id.as_str(), |address| taken.contains(&address))
            })
            .ok_or(NetworkError::NetworkCount { count: outer.len() })?;
        if !is_laid {
            let remove = || Netlink::open()?.remove(&name);
            self.uplink.run(|| remove().trying("remove half of its line")).map_err(failed())?;
            let lay = || {
                let links = Netlink::open()?;
                links.remove(PUBLIC)?;
                links.make_pair(PUBLIC, &name, self.uplink.file().as_fd())
            };
            inside.run(|| lay().trying("lay its line")).map_err(failed())?;
        }
        self.uplink.run(|| self.furnish_uplink(layout, lease)).map_err(failed())?;
        Ok(lease)
    }

    /// Brings the uplink's side of a network to what it should be; in the uplink's namespace.
    fn furnish_uplink(&self, layout: &Layout, lease: Ipv4Addr) -> Result<(), Failure> {
        let (ports, reachable) = (&self.config.node_ports, &self.config.reachable);
        let table = rules::outside(layout, lease, ports, reachable);
        let netlink = Netlink::open().trying("open a socket to the kernel")?;
        let mut found = netlink.links().trying("list the node's links")?;
        // Whatever else is there is none of this network's business.
        let name = uplink_name(&layout.id);
        found.retain(|link| link.name == name);
        let steps = plan(&[layout.uplink(lease)], &found);
        execute(&netlink, &steps.build)?;
        set_all(&layout.uplink_settings())?;
        nft::load(&self.config.nft, &table).trying("load its rules on the node")?;
        execute(&netlink, &steps.start)
    }

    /// Brings the namespace of a network to what it should be; in that namespace.
    fn furnish(&self, layout: &Layout, lease: Ipv4Addr) -> Result<(), Failure> {
        let netlink = Netlink::open().trying("open a socket to the kernel")?;
        let steps = plan(&layout.links(lease), &netlink.links().trying("list its links")?);
        execute(&netlink, &steps.build)?;
        set_all(&layout.settings())?;
        let counters = self.counters()?;
        let rules = rules::inside(layout, &counters);
        nft::load(&self.config.nft, &rules).trying("load its rules")?;
        execute(&netlink, &steps.start)
    }
}

/// Removes what a network has in the calling thread's namespace.
fn strip() -> Result<(), Failure> {
    let netlink = Netlink::open().trying("open a socket to the kernel")?;
    let links = netlink.links().trying("list its links")?;
    let is_made = |link: &&Found| matches!(link.kind, Kind::Pair | Kind::Tap | Kind::Bridge);
    // Ports first, then what they are ports of.
    let (bridges, others): (Vec<_>, Vec<_>) =
        { links.iter() }.filter(is_made).partition(|link| link.kind == Kind::Bridge);
    for link in others.into_iter().chain(bridges) {
        netlink.remove(&link.name).trying(Step::Remove(link.name.clone()))?;
    }
    Ok(())
}

fn execute(netlink: &Netlink, steps: &[Step]) -> Result<(), Failure> {
    for step in steps {
        tracing::debug!(%step, "network");
        netlink.execute(step).trying(step)?;
    }
    Ok(())
}

/// Sets what differs. To write what is there already can still cost the kernel a lot.
fn set_all(settings: &[Setting]) -> Result<(), Failure> {
    for Setting { path, value, is_optional } in settings {
        let file = Path::new("/proc/sys/net").join(path);
        let set = match fs::read_to_string(&file) {
            Ok(old) if old.trim_end() == *value => Ok(()),
            Ok(_) => fs::write(&file, value),
            Err(error) => Err(error),
        };
        match set {
            Err(error) if *is_optional && error.kind() == io::ErrorKind::NotFound => {}
            other => other.trying(format_args!("set net/{path} to {value}"))?,
        }
    }
    Ok(())
}

/// Whose tap a link is, if it is one.
fn member(link: &Found) -> Option<Member> {
    Member::read(&link.name, link.label.as_deref()?).filter(|_| link.kind == Kind::Tap)
}

/// The address of the node that a line has.
fn lease_of(link: &Found) -> Option<Ipv4Addr> {
    if !link.name.starts_with(UPLINK_PREFIX) {
        return None;
    }
    link.addresses.iter().find_map(|address| match address.peer {
        Some(IpAddr::V4(peer)) => Some(peer),
        _ => None,
    })
}

fn refused(id: &NetworkId) -> impl Fn(Failure) -> NetworkError {
    let network = id.to_string();
    move |Failure { step, source }| NetworkError::Kernel { network: network.clone(), step, source }
}
