//! UDP links to peers: dialed by name, or by peers that dial this node.

use std::net::SocketAddr;
use std::sync::Arc;

use mycelium_router::LinkInfo;
use tokio::sync::mpsc;

use crate::endpoint::{Endpoint, Protocol};
use crate::link::Carrier;
use crate::link::udp::UdpCarrier;
use crate::link::udp::dial::{self, Reason};
use crate::link::udp::socket::Sockets;
use crate::peers::connect::Connection;
use crate::peers::{Peers, shown};

/// Connects to whoever is at `address`.
pub(crate) async fn dial(
    sockets: &Arc<Sockets>,
    address: SocketAddr,
) -> anyhow::Result<Connection> {
    let carrier = dial::dial(sockets, &[address], None, Reason::Chosen).await?;
    Ok(connection(carrier))
}

/// Takes links that peers dialed, for as long as the node runs.
pub(crate) async fn serve(peers: Arc<Peers>, mut accepted: mpsc::Receiver<UdpCarrier>) {
    while let Some(carrier) = accepted.recv().await {
        if let Ok(permit) = peers.inbound_permit() {
            let endpoint = Endpoint::new(Protocol::Udp, carrier.address());
            tokio::spawn(Arc::clone(&peers).serve(endpoint, connection(carrier), permit));
        }
    }
}

/// What a link is made of.
pub(crate) fn connection(carrier: UdpCarrier) -> Connection {
    let peer = carrier.address();
    Connection {
        carrier: Carrier::Udp(Box::new(carrier)),
        description: format!("{} -> {peer}", shown(Protocol::Udp)),
        info: if peer.is_ipv4() { LinkInfo::UDP4 } else { LinkInfo::UDP6 },
        local: None,
    }
}
