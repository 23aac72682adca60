//! The grid's environments: where each is, and where it says what has changed since.
//!
//! A node is told one word (`runmode=` of the kernel's command line, or `network` of a configuration), and
//! knows with it where its chain and relays are (`reference: zero-os 4.2`). The grid publishes a file for
//! each environment; what that says counts more than what is written here, key by key.

use std::fmt;

use crate::network::{Network, Peers, RolloutUpgrade};

/// Where the grid publishes what has changed.
const CONFIGS: &str = "https://raw.githubusercontent.com/threefoldtech/zos-config/main";

/// One of the grid's environments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunMode {
    /// For its developers.
    Dev,
    /// For those who look for their mistakes.
    Qa,
    /// For everybody who wants to try.
    Test,
    /// The grid.
    Main,
}

impl RunMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dev, Self::Qa, Self::Test, Self::Main];

    /// The environment of that name, in any of the spellings that the kernel's command line knows.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "dev" | "development" => Some(Self::Dev),
            "qa" => Some(Self::Qa),
            "test" | "testing" => Some(Self::Test),
            "prod" | "production" | "main" => Some(Self::Main),
            _ => None,
        }
    }

    /// Its usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dev => "development",
            Self::Qa => "qa",
            Self::Test => "testing",
            Self::Main => "production",
        }
    }

    /// Where the grid says what has changed.
    pub fn config_url(self) -> String {
        format!("{CONFIGS}/{}.json", self.name())
    }

    /// Where it is, as far as is known without asking anybody.
    pub fn network(self) -> Network {
        let part = match self {
            Self::Dev => "dev.",
            Self::Qa => "qa.",
            Self::Test => "test.",
            Self::Main => "",
        };
        let at = |urls: &[&str]| urls.iter().map(|url| url.replace("{}", part)).collect::<Vec<_>>();
        let is_main = self == Self::Main;
        let substrate_urls = match is_main {
            true => at(&[
                "wss://tfchain.grid.tf/",
                "wss://tfchain.02.grid.tf/",
                "wss://02.tfchain.grid.tf/",
                "wss://03.tfchain.grid.tf/",
                "wss://04.tfchain.grid.tf/",
            ]),
            false => at(&["wss://tfchain.{}grid.tf/", "wss://tfchain.02.{}grid.tf/"]),
        };
        let mut activation_urls = at(&[
            "https://activation.{}grid.tf/activation/activate",
            "https://activation.02.{}grid.tf/activation/activate",
        ]);
        let mut graphql_urls =
            at(&["https://graphql.{}grid.tf/graphql", "https://graphql.02.{}grid.tf/graphql"]);
        if is_main {
            let first = "https://activation.grid.threefold.me/activation/activate";
            activation_urls.insert(0, first.to_owned());
            graphql_urls.insert(0, "https://graphql.grid.threefold.me/graphql".to_owned());
        }
        let [kyc_url, registrar_url, bin_repo] = self.services();
        Network {
            name: self.name().to_owned(),
            substrate_urls,
            relays_urls: at(&["wss://relay.{}grid.tf"]),
            activation_urls,
            graphql_urls,
            kyc_url: kyc_url.to_owned(),
            registrar_url: registrar_url.to_owned(),
            bin_repo: bin_repo.to_owned(),
            geoip_urls: at(&[
                "https://geoip.threefold.me",
                "https://geoip.grid.tf",
                "https://02.geoip.grid.tf",
                "https://03.geoip.grid.tf",
            ]),
            hub_urls: at(&["https://hub.threefold.me"]),
            v4_hub_urls: at(&["https://v4.hub.threefold.me"]),
            flist_url: "redis://hub.threefold.me:9900".to_owned(),
            v4_flist_url: "redis://v4.hub.threefold.me:9940".to_owned(),
            hub_storage: "zdb://hub.threefold.me:9900".to_owned(),
            v4_hub_storage: "zdb://v4.hub.threefold.me:9940".to_owned(),
            ..Network::default()
        }
    }
}

impl RunMode {
    /// Who knows twins, the registrar of version 4, and the repository of binaries.
    const fn services(self) -> [&'static str; 3] {
        match self {
            Self::Dev => {
                ["https://kyc.dev.grid.tf", "http://registrar.dev4.grid.tf", "tf-zos-v3-bins.dev"]
            }
            Self::Qa => {
                ["https://kyc.qa.grid.tf", "https://registrar.qa4.grid.tf", "tf-zos-v3-bins.qanet"]
            }
            Self::Test => [
                "https://kyc.test.grid.tf",
                "http://registrar.test4.grid.tf",
                "tf-zos-v3-bins.test",
            ],
            Self::Main => [
                "https://kyc.threefold.me",
                "https://registrar.prod4.threefold.me",
                "tf-zos-v3-bins",
            ],
        }
    }
}

impl fmt::Display for RunMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Network {
    /// What this says, and where it says nothing, what `base` does.
    #[must_use]
    pub fn or(self, base: Self) -> Self {
        fn text(ours: String, theirs: String) -> String {
            if ours.is_empty() { theirs } else { ours }
        }
        fn list<T>(ours: Vec<T>, theirs: Vec<T>) -> Vec<T> {
            if ours.is_empty() { theirs } else { ours }
        }
        Self {
            name: text(self.name, base.name),
            substrate_urls: list(self.substrate_urls, base.substrate_urls),
            relays_urls: list(self.relays_urls, base.relays_urls),
            activation_urls: list(self.activation_urls, base.activation_urls),
            graphql_urls: list(self.graphql_urls, base.graphql_urls),
            gridproxy_urls: list(self.gridproxy_urls, base.gridproxy_urls),
            kyc_url: text(self.kyc_url, base.kyc_url),
            registrar_url: text(self.registrar_url, base.registrar_url),
            bin_repo: text(self.bin_repo, base.bin_repo),
            geoip_urls: list(self.geoip_urls, base.geoip_urls),
            hub_urls: list(self.hub_urls, base.hub_urls),
            v4_hub_urls: list(self.v4_hub_urls, base.v4_hub_urls),
            flist_url: text(self.flist_url, base.flist_url),
            v4_flist_url: text(self.v4_flist_url, base.v4_flist_url),
            hub_storage: text(self.hub_storage, base.hub_storage),
            v4_hub_storage: text(self.v4_hub_storage, base.v4_hub_storage),
            mycelium: Peers { peers: list(self.mycelium.peers, base.mycelium.peers) },
            admin_twins: list(self.admin_twins, base.admin_twins),
            rollout_upgrade: RolloutUpgrade {
                test_farms: list(self.rollout_upgrade.test_farms, base.rollout_upgrade.test_farms),
            },
            genesis_hash: self.genesis_hash.or(base.genesis_hash),
            ca_file: text(self.ca_file, base.ca_file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_are_known_by_their_names() {
        for mode in RunMode::ALL {
            assert_eq!(RunMode::of_name(mode.name()), Some(mode));
            let network = mode.network();
            // What is written here is what the file could say.
            let read = Network::parse(&network.to_json()).unwrap();
            assert_eq!((&read.network, &*read.problems), (&network, &[][..]));
            let mut urls = network.substrate_urls.iter().chain(&network.relays_urls);
            assert!(urls.all(|url| url.starts_with("wss://") && !url.contains("{}")));
        }
        for (name, mode) in
            [("dev", RunMode::Dev), ("test", RunMode::Test), ("prod", RunMode::Main)]
        {
            assert_eq!(RunMode::of_name(name), Some(mode));
        }
        assert_eq!(RunMode::of_name("/etc/network.json"), None);
    }

    #[test]
    fn environments_are_where_the_grid_has_them() {
        let dev = RunMode::Dev.network();
        assert_eq!(
            dev.substrate_urls,
            ["wss://tfchain.dev.grid.tf/", "wss://tfchain.02.dev.grid.tf/"]
        );
        assert_eq!(dev.relays_urls, ["wss://relay.dev.grid.tf"]);
        assert_eq!(dev.activation_urls[1], "https://activation.02.dev.grid.tf/activation/activate");
        assert_eq!(dev.kyc_url, "https://kyc.dev.grid.tf");
        let main = RunMode::Main.network();
        assert_eq!(main.substrate_urls.len(), 5);
        assert_eq!(main.relays_urls, ["wss://relay.grid.tf"]);
        assert_eq!(main.graphql_urls[0], "https://graphql.grid.threefold.me/graphql");
        assert!(RunMode::Main.config_url().ends_with("/zos-config/main/production.json"));
    }

    #[test]
    fn what_the_file_says_counts_more_key_by_key() {
        let text = r#"{"relays_urls": ["wss://new"], "kyc_url": 7, "admin_twins": [3]}"#;
        let read = Network::parse(text.as_bytes()).unwrap().network;
        let base = RunMode::Qa.network();
        let network = read.or(base.clone());
        assert_eq!(network.relays_urls, ["wss://new"]);
        assert_eq!(network.admin_twins, [3]);
        assert_eq!(
            Network { relays_urls: base.relays_urls.clone(), admin_twins: vec![], ..network },
            base
        );
    }
}
