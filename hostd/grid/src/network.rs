//! Where a grid is: its chain, relays and services, as `network.json` says.
//!
//! The grid publishes one such file for each of its environments, and a grid on one machine writes its
//! own. Nodes, the command line and tests all read the same shape: the keys of the grid's environment
//! file, and a few of ours beside them that existing nodes pass over.
//!
//! ```json
//! { "name": "development", "substrate_urls": ["ws://127.0.0.1:9944"],
//!   "relays_urls": ["wss://127.0.0.1"], "activation_urls": ["http://127.0.0.1:9946/activation/activate"],
//!   "graphql_urls": ["http://127.0.0.1:9946/graphql"], "gridproxy_urls": ["http://127.0.0.1:9946"],
//!   "kyc_url": "http://127.0.0.1:9946/kyc", "genesis_hash": "0x…", "ca_file": "ca.pem" }
//! ```
//!
//! A mistake in that file once took all nodes of a network out at the same time. So reading it is
//! tolerant: a key that is unknown is ignored; one whose value is of the wrong kind is left at its
//! default and named in [`Reading::problems`]; only what is no JSON object at all is an error. Whoever
//! reads it keeps the last good one.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::hex;

/// Largest file that is read, in bytes.
pub const NETWORK_SIZE_MAX: usize = 1 << 20;
/// Most entries of one list that are kept.
pub const LIST_COUNT_MAX: usize = 64;
/// Most relays that are used: the chain keeps them in one field of a twin.
pub const RELAY_COUNT_MAX: usize = 4;

/// Everything that `network.json` says. Lists are in order of preference; what is absent is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Network {
    /// What people call this grid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Websocket addresses of the chain.
    pub substrate_urls: Vec<String>,
    /// Websocket addresses of relays, at most [`RELAY_COUNT_MAX`].
    pub relays_urls: Vec<String>,
    /// Where accounts are activated, by HTTP.
    pub activation_urls: Vec<String>,
    /// GraphQL over what the chain says.
    pub graphql_urls: Vec<String>,
    /// The grid proxy: REST over what the chain says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gridproxy_urls: Vec<String>,
    /// Which twins are known to the grid's operator.
    pub kyc_url: String,
    /// The registrar of version 4.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub registrar_url: String,
    /// The hub's repository that node binaries come from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bin_repo: String,
    /// Where a node is on the map.
    pub geoip_urls: Vec<String>,
    /// Hubs of flists.
    pub hub_urls: Vec<String>,
    /// Hubs of flists, for version 4.
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "v4hub_urls")]
    pub v4_hub_urls: Vec<String>,
    /// Where blocks of flists are, unless the flist says so.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub flist_url: String,
    /// The same for version 4.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub v4_flist_url: String,
    /// The hub's own storage.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hub_storage: String,
    /// The same for version 4.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub v4_hub_storage: String,
    /// Peers of Mycelium.
    #[serde(skip_serializing_if = "Peers::is_empty")]
    pub mycelium: Peers,
    /// Twins that administer nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admin_twins: Vec<u32>,
    /// Farms that get releases first.
    #[serde(skip_serializing_if = "RolloutUpgrade::is_empty")]
    pub rollout_upgrade: RolloutUpgrade,
    /// Hash of the chain's first block: an endpoint of another chain is refused.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hash_as_text")]
    pub genesis_hash: Option<[u8; 32]>,
    /// Certificates of authorities, in PEM, that vouch for this grid's addresses beside those that
    /// everyone trusts. Relative to the folder of `network.json`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_file: String,
}

/// Peers to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Peers {
    /// As the overlay writes them.
    pub peers: Vec<String>,
}

impl Peers {
    fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

/// Who gets a release first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RolloutUpgrade {
    /// Numbers of farms.
    pub test_farms: Vec<u32>,
}

impl RolloutUpgrade {
    fn is_empty(&self) -> bool {
        self.test_farms.is_empty()
    }
}

/// A network, and what of its file made no sense.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// What could be read.
    pub network: Network,
    /// One sentence for each key that was passed over although it is known.
    pub problems: Vec<String>,
}

/// Why a file says nothing about a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Larger than such a file can be.
    #[error("network.json has {0} bytes, and at most {NETWORK_SIZE_MAX} are read")]
    Size(usize),
    /// Not JSON.
    #[error("network.json is no JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// JSON, but no object.
    #[error("network.json is no JSON object")]
    Shape,
}

impl Network {
    /// Reads the bytes of `network.json`.
    ///
    /// # Errors
    ///
    /// Only if they are too many or no JSON object; see [`Reading::problems`] for the rest.
    pub fn parse(bytes: &[u8]) -> Result<Reading, NetworkError> {
        if bytes.len() > NETWORK_SIZE_MAX {
            return Err(NetworkError::Size(bytes.len()));
        }
        let Value::Object(object) = serde_json::from_slice(bytes).map_err(NetworkError::Json)?
        else {
            return Err(NetworkError::Shape);
        };
        let mut reader = Reader { object, problems: Vec::new() };
        let network = reader.network();
        Ok(Reading { network, problems: reader.problems })
    }

    /// The bytes of a `network.json` that says the same.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("texts, numbers and lists are always JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Where the certificates of authorities are, if `network.json` lies in `folder`.
    pub fn ca_path(&self, folder: &Path) -> Option<std::path::PathBuf> {
        (!self.ca_file.is_empty()).then(|| folder.join(&self.ca_file))
    }
}

/// Takes keys out of an object, and remembers what was wrong with them.
struct Reader {
    object: Map<String, Value>,
    problems: Vec<String>,
}

impl Reader {
    fn network(&mut self) -> Network {
        let mut relays_urls = self.texts("relays_urls");
        if relays_urls.len() > RELAY_COUNT_MAX {
            self.problems.push(format!(
                "relays_urls has {} entries, the first {RELAY_COUNT_MAX} are used",
                relays_urls.len()
            ));
            relays_urls.truncate(RELAY_COUNT_MAX);
        }
        Network {
            name: self.text("name"),
            substrate_urls: self.texts("substrate_urls"),
            relays_urls,
            activation_urls: self.texts("activation_urls"),
            graphql_urls: self.texts("graphql_urls"),
            gridproxy_urls: self.texts("gridproxy_urls"),
            kyc_url: self.text("kyc_url"),
            registrar_url: self.text("registrar_url"),
            bin_repo: self.text("bin_repo"),
            geoip_urls: self.texts("geoip_urls"),
            hub_urls: self.texts("hub_urls"),
            v4_hub_urls: self.texts("v4hub_urls"),
            flist_url: self.text("flist_url"),
            v4_flist_url: self.text("v4_flist_url"),
            hub_storage: self.text("hub_storage"),
            v4_hub_storage: self.text("v4_hub_storage"),
            mycelium: Peers { peers: self.within("mycelium", |inner| inner.texts("peers")) },
            admin_twins: self.numbers("admin_twins"),
            rollout_upgrade: RolloutUpgrade {
                test_farms: self.within("rollout_upgrade", |inner| inner.numbers("test_farms")),
            },
            genesis_hash: self.hash("genesis_hash"),
            ca_file: self.text("ca_file"),
        }
    }

    /// The value of `key`, unless it is absent or `null`.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.object.remove(key).filter(|value| !value.is_null())
    }

    fn problem(&mut self, key: &str, expected: &str) {
        self.problems.push(format!("{key} is not {expected}"));
    }

    fn text(&mut self, key: &str) -> String {
        match self.take(key) {
            None => String::new(),
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(_) => {
                self.problem(key, "a text");
                String::new()
            }
        }
    }

    /// A list of texts; a bare text is a list of one.
    fn texts(&mut self, key: &str) -> Vec<String> {
        let values = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(text @ Value::String(_)) => vec![text],
            Some(_) => {
                self.problem(key, "a list of texts");
                return Vec::new();
            }
        };
        let count = values.len();
        let texts: Vec<_> = values
            .into_iter()
            .take(LIST_COUNT_MAX)
            .filter_map(|value| match value {
                Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
                _ => None,
            })
            .collect();
        if texts.len() < count {
            self.problems.push(format!("{key}: {} entries are ignored", count - texts.len()));
        }
        texts
    }

    fn numbers(&mut self, key: &str) -> Vec<u32> {
        let values = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(_) => {
                self.problem(key, "a list of numbers");
                return Vec::new();
            }
        };
        let count = values.len();
        let numbers: Vec<_> = values
            .iter()
            .take(LIST_COUNT_MAX)
            .filter_map(|value| u32::try_from(value.as_u64()?).ok())
            .collect();
        if numbers.len() < count {
            self.problems.push(format!("{key}: {} entries are ignored", count - numbers.len()));
        }
        numbers
    }

    fn hash(&mut self, key: &str) -> Option<[u8; 32]> {
        let text = self.text(key);
        if text.is_empty() {
            return None;
        }
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let hash = hex::decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
        if hash.is_none() {
            self.problem(key, "a hash of 64 hexadecimal digits");
        }
        hash
    }

    /// Reads inside of the object at `key`.
    fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let object = match self.take(key) {
            Some(Value::Object(object)) => object,
            None => Map::new(),
            Some(_) => {
                self.problem(key, "an object");
                Map::new()
            }
        };
        let mut inner = Self { object, problems: Vec::new() };
        let value = read(&mut inner);
        self.problems.extend(inner.problems.into_iter().map(|problem| format!("{key}.{problem}")));
        value
    }
}

#[expect(clippy::ref_option, reason = "serde gives a reference to the field")]
fn hash_as_text<S: serde::Serializer>(
    hash: &Option<[u8; 32]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match hash {
        Some(hash) => serializer.serialize_str(&format!("0x{}", hex::encode(hash))),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_grids_environment_file_is_read() {
        let text = br#"{
            "yggdrasil": {"peers": ["tcp://[::1]:1"]}, "mycelium": {"peers": ["tcp://a:9651", ""]},
            "users": {"authorized": ["someone"]}, "admin_twins": [1, 2, -1],
            "rollout_upgrade": {"test_farms": [1]},
            "substrate_urls": ["wss://tfchain.grid.tf/"], "relays_urls": "wss://relay.grid.tf",
            "kyc_url": "https://kyc.threefold.me", "v4hub_urls": ["https://v4.hub.threefold.me"],
            "bin_repo": null, "flist_url": "redis://hub.threefold.me:9900"
        }"#;
        let Reading { network, problems } = Network::parse(text).unwrap();
        assert_eq!(network.substrate_urls, ["wss://tfchain.grid.tf/"]);
        assert_eq!(network.relays_urls, ["wss://relay.grid.tf"]);
        assert_eq!(network.mycelium.peers, ["tcp://a:9651"]);
        assert_eq!(network.admin_twins, [1, 2]);
        assert_eq!(network.rollout_upgrade.test_farms, [1]);
        assert_eq!(network.v4_hub_urls, ["https://v4.hub.threefold.me"]);
        assert_eq!(network.bin_repo, "");
        assert_eq!(
            problems,
            ["mycelium.peers: 1 entries are ignored", "admin_twins: 1 entries are ignored"]
        );
    }

    #[test]
    fn a_key_of_the_wrong_kind_costs_that_key_alone() {
        let text = br#"{"substrate_urls": 7, "kyc_url": [], "genesis_hash": "0x12",
                        "mycelium": [], "hub_urls": ["https://hub.grid.tf"]}"#;
        let Reading { network, problems } = Network::parse(text).unwrap();
        assert_eq!(network.hub_urls, ["https://hub.grid.tf"]);
        assert_eq!(network.genesis_hash, None);
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn more_relays_than_fit_on_the_chain_are_cut() {
        let text = br#"{"relays_urls": ["wss://1", "wss://2", "wss://3", "wss://4", "wss://5"]}"#;
        let Reading { network, problems } = Network::parse(text).unwrap();
        assert_eq!(network.relays_urls.len(), RELAY_COUNT_MAX);
        assert_eq!(problems, ["relays_urls has 5 entries, the first 4 are used"]);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(matches!(Network::parse(b"[]"), Err(NetworkError::Shape)));
        assert!(matches!(Network::parse(b"{"), Err(NetworkError::Json(_))));
        let large = vec![b' '; NETWORK_SIZE_MAX + 1];
        assert!(matches!(Network::parse(&large), Err(NetworkError::Size(_))));
    }

    #[test]
    fn certificates_lie_beside_the_file() {
        let network = Network { ca_file: "ca.pem".to_owned(), ..Network::default() };
        assert_eq!(network.ca_path(Path::new("/grid")), Some("/grid/ca.pem".into()));
        assert_eq!(Network::default().ca_path(Path::new("/grid")), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            urls in prop::collection::vec("[a-z]{1,8}://[a-z.]{1,12}", 0..4),
            name in "[a-z]{0,8}",
            hash in prop::option::of(prop::array::uniform32(any::<u8>())),
            farms in prop::collection::vec(any::<u32>(), 0..4),
        ) {
            let network = Network {
                name,
                substrate_urls: urls.clone(),
                relays_urls: urls.clone(),
                v4_hub_urls: urls.clone(),
                mycelium: Peers { peers: urls },
                rollout_upgrade: RolloutUpgrade { test_farms: farms },
                genesis_hash: hash,
                ca_file: "ca.pem".to_owned(),
                ..Network::default()
            };
            let read = Network::parse(&network.to_json()).unwrap();
            prop_assert_eq!(read, Reading { network, problems: Vec::new() });
        }

        #[test]
        fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Network::parse(&bytes);
        }
    }
}
