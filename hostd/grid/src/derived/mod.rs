//! What follows from a deployment without anybody saying it: ids, names of interfaces, MACs, addresses.
//!
//! Clients compute some of these too, machines keep their addresses by them when they move, and a node
//! that takes over another's disks finds everything under them. So they are part of the protocol, with
//! their oddities.
//!
//! | module | what |
//! |---|---|
//! | [`ids`] | ids of workloads and networks, and the 13 characters that devices are named by |
//! | [`mac`] | MACs from any text |
//! | [`network`] | namespaces, bridges and taps of full nodes; private, public and mycelium addresses |
//! | [`light`] | namespaces, bridges and taps of light nodes |
//! | [`zdb`] | namespaces and MACs of ZDB servers |

pub mod ids;
pub mod light;
pub mod mac;
pub mod network;
pub mod zdb;

pub use ids::{NetworkId, ShortId, WorkloadId};
pub use mac::MacAddress;
