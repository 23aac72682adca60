//! The chain knows the node as it is: its account, its twin, and what it has.

use std::sync::Arc;
use std::time::Duration;

use hostd_chain::ChainError;
use hostd_chain::calls::NodeSpec;
use hostd_chain::types::{Interface, Resources};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::retry::Retry;
use super::{NodeError, Shared, Site};
use crate::health::Duty;
use crate::host::Host;
use crate::registrar::Registrar;
use crate::state::Numbers;

/// How often the chain is asked whether it still knows the node as it is.
const CHECK_INTERVAL: Duration = Duration::from_secs(30 * 60);
/// How often the node looks whether it is what it was.
const LOOK_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// First pause after a failure.
const RETRY_MIN: Duration = Duration::from_secs(5);
/// Which card's addresses the chain gets.
const CARD: &str = "zos";

/// Has the chain know the node as it is, if it can be one.
pub(super) async fn register(
    registrar: &dyn Registrar,
    site: &Site,
    host: &dyn Host,
) -> Result<Numbers, NodeError> {
    match host.unfit() {
        Some(reason) => Err(NodeError::Unfit(reason)),
        None => Ok(registrar.register(&site.account, &spec(site, host)).await?),
    }
}

/// What the chain is to know.
fn spec(site: &Site, host: &dyn Host) -> NodeSpec {
    let total = host.resources().total;
    let hardware = host.hardware();
    let interfaces = hardware.cards.get(CARD).map(|card| Interface {
        name: CARD.into(),
        mac: card.mac.as_str().into(),
        ips: card.ips.iter().map(|ip| ip.to_string().into()).collect(),
    });
    NodeSpec {
        farm_id: site.farm_id,
        resources: Resources { hru: total.hru, sru: total.sru, cru: total.cru, mru: total.mru },
        location: site.place.on_chain(),
        interfaces: interfaces.into_iter().collect(),
        secure_boot: hardware.secure_boot,
        virtualized: !host.about().hypervisor.is_empty(),
        serial_number: hardware.board_serial,
    }
}

impl Shared {
    /// Registers again and again. Says so if the chain gives the node other numbers, and ends then.
    pub(super) async fn keep_registered(
        self: Arc<Self>,
        mut is_registered: bool,
        renumber: watch::Sender<bool>,
    ) {
        let mut retry = Retry::after(RETRY_MIN);
        loop {
            if !is_registered {
                let registered = register(&*self.registrar, &self.site, &*self.host).await;
                match registered {
                    Ok(numbers) if numbers != self.numbers => {
                        warn!(?numbers, "the chain gave this node other numbers");
                        numbers.remember(&*self.state);
                        renumber.send_replace(true);
                        return;
                    }
                    Ok(_) => is_registered = true,
                    Err(error) => {
                        let reason = match &error {
                            NodeError::Chain(error) => error.to_string(),
                            other => other.to_string(),
                        };
                        warn!(reason, "not registered");
                        self.health.note(Duty::Registration, &Err(reason));
                    }
                }
            }
            if is_registered {
                let learned = self.learn().await;
                self.health.note(Duty::Registration, &learned);
                is_registered = learned.is_ok();
            }
            if is_registered {
                retry.reset();
                self.until_something_changes().await;
                is_registered = false;
            } else {
                sleep(retry.pause()).await;
            }
        }
    }

    /// Waits until it is time to ask the chain again.
    async fn until_something_changes(&self) {
        let (before, since) = (spec(&self.site, &*self.host), Instant::now());
        while since.elapsed() < CHECK_INTERVAL {
            sleep(LOOK_INTERVAL).await;
            if spec(&self.site, &*self.host) != before {
                info!("this node is not what it was");
                return;
            }
        }
    }

    /// Asks the chain who the farmer is, and how the farmer wants the node to be reached.
    async fn learn(&self) -> Result<(), ChainError> {
        if let Some(twin) = self.registrar.farmer(self.site.farm_id).await? {
            self.known.set_farmer(twin);
        }
        let config = self.registrar.public_config(self.numbers.node_id).await?;
        self.known.set_public_config(config);
        Ok(())
    }
}
