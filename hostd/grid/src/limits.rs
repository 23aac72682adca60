//! How much of anything is read.
//!
//! Existing nodes set none of these limits. They are far above what any client sends, and keep what one
//! message can make a node hold and do within bounds.

/// Bytes of a deployment's JSON. Entry points and environments may carry whole scripts.
pub const DEPLOYMENT_SIZE_MAX: usize = 4 << 20;

/// Objects and lists inside one another. A deployment needs eight; what the node doesn't know, and
/// skips, may be deeper.
pub const DEPTH_MAX: usize = 128;

/// Elements of all lists and entries of all maps of one document together: the shortest take two bytes
/// of JSON and a hundred times that in memory.
pub const VALUE_COUNT_MAX: usize = 32_768;

/// Workloads of one deployment.
pub const WORKLOAD_COUNT_MAX: usize = 1024;

/// Signatures that one deployment may ask for: each takes about 50 µs to verify.
pub const SIGNATURE_REQUEST_COUNT_MAX: usize = 64;

/// Bytes of a workload's name: the longest tag of a virtio file system.
pub const NAME_SIZE_MAX: usize = 36;

/// Bytes of a domain name (RFC 1035 §2.3.4).
pub const DOMAIN_SIZE_MAX: usize = 253;

/// Bytes of one label of a domain name (RFC 1035 §2.3.4).
pub const LABEL_SIZE_MAX: usize = 63;

/// Bytes that an error text quotes of what it is about.
pub const EXCERPT_SIZE_MAX: usize = 128;
