//! Who types, on which grid: what `grid login` stored, and the connections that come of it.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hostd_chain::{Chain, ChainConfig, SigningChain};
use hostd_grid::network::Network;
use hostd_rmb::identity::Identity;
use hostd_rmb::peer::{Call, Peer, PeerConfig, Retry};
use hostd_rmb::relay::{RelayAddress, TrustedRoots};
use hostd_rmb::server::Commands;
use hostd_rmb::signature::{Scheme, Version};
use hostd_rmb::twins::{CachedTwins, TwinId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::exit::NotFound;
use crate::proxy::Proxy;

/// How long to wait for an answer of a node.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// How long to wait for a connection to a relay.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// What joins the names of a twin's relays on the chain.
const RELAY_SEPARATOR: &str = "_";

/// What `grid login` stores.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// Where the grid is.
    pub(crate) network: PathBuf,
    /// `sr25519` or `ed25519`.
    pub(crate) scheme: String,
    /// The mnemonic or seed.
    #[serde(serialize_with = "write_secret", deserialize_with = "read_secret")]
    pub(crate) secret: Zeroizing<String>,
}

fn write_secret<S: Serializer>(secret: &Zeroizing<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret)
}

fn read_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(from).map(Zeroizing::new)
}

impl Login {
    /// Where it is stored.
    fn path() -> anyhow::Result<PathBuf> {
        let folder = match (std::env::var_os("GRID_HOME"), std::env::var_os("XDG_CONFIG_HOME")) {
            (Some(home), _) => PathBuf::from(home),
            (None, Some(config)) => Path::new(&config).join("grid"),
            (None, None) => {
                let home =
                    std::env::home_dir().context("there is no home folder: set GRID_HOME")?;
                home.join(".config/grid")
            }
        };
        Ok(folder.join("login.json"))
    }

    /// Reads it, unless others could have.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let path = Self::path()?;
        let shown = || path.display().to_string();
        let text = fs::read(&path).with_context(shown);
        let text = Zeroizing::new(text.context("nobody is logged in: run `grid login`")?);
        let mode = fs::metadata(&path).with_context(shown)?.mode() & 0o077;
        ensure!(mode == 0, "{}: others may read it: make it 0600", shown());
        serde_json::from_slice(&text).with_context(shown)
    }

    /// Stores it where only its owner can read it.
    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        let path = Self::path()?;
        let shown = || path.display().to_string();
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| folder.display().to_string())?;
        }
        let partial = path.with_extension("part");
        // One that is there may have other permissions.
        let _ = fs::remove_file(&partial);
        let mut file =
            { File::options() }.create_new(true).write(true).mode(0o600).open(&partial)?;
        let text = Zeroizing::new(serde_json::to_vec(self)?);
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(shown)?;
        fs::rename(&partial, &path).with_context(shown)?;
        Ok(path)
    }

    /// Who it is.
    pub(crate) fn identity(&self) -> anyhow::Result<Identity> {
        let scheme = match &*self.scheme {
            "sr25519" => Scheme::Sr25519,
            "ed25519" => Scheme::Ed25519,
            other => anyhow::bail!("{other:?} is no kind of key: sr25519 and ed25519 are"),
        };
        Ok(Identity::from_phrase(scheme, &self.secret)?)
    }
}

/// A user on a grid.
pub(crate) struct Session {
    pub(crate) identity: Arc<Identity>,
    pub(crate) chain: SigningChain,
    network: Network,
    roots: TrustedRoots,
}

impl Session {
    /// Connects to the chain.
    pub(crate) async fn open(login: &Login) -> anyhow::Result<Self> {
        let identity = Arc::new(login.identity()?);
        let shown = || login.network.display().to_string();
        let bytes = fs::read(&login.network).with_context(shown)?;
        let reading = Network::parse(&bytes).with_context(shown)?;
        for problem in &reading.problems {
            eprintln!("{}: {problem}", shown());
        }
        let network = reading.network;
        let folder = login.network.parent().unwrap_or_else(|| Path::new("."));
        let authorities = match network.ca_path(folder) {
            Some(path) => Some(fs::read(&path).with_context(|| path.display().to_string())?),
            None => None,
        };
        let roots = TrustedRoots::new(authorities.as_deref())?;
        let genesis = network.genesis_hash;
        let endpoints = network.substrate_urls.clone();
        // What a later command reads is finalized, and it must find what this one made.
        let confirmation = hostd_chain::config::Confirmation::Finalized;
        let config =
            ChainConfig { genesis, confirmation, ..ChainConfig::new(endpoints, roots.clone()) };
        let chain = Chain::connect(config).await?;
        let chain = chain.signed_by(Arc::clone(&identity));
        Ok(Self { identity, chain, network, roots })
    }

    /// What knows all nodes and contracts.
    pub(crate) fn proxy(&self) -> Proxy {
        Proxy::new(&self.network.gridproxy_urls)
    }

    fn relays(&self) -> anyhow::Result<Vec<RelayAddress>> {
        ensure!(!self.network.relays_urls.is_empty(), "this grid has no relay");
        self.network.relays_urls.iter().map(|url| Ok(url.parse()?)).collect()
    }

    /// Makes sure that the account has money and a twin that can be written to.
    pub(crate) async fn register(&self) -> anyhow::Result<u32> {
        self.chain.ensure_account(&self.network.activation_urls).await?;
        let relays = self.relays()?;
        let hosts: Vec<_> = relays.iter().map(RelayAddress::host).collect();
        let key = self.identity.encryption_key(Version::V1).to_bytes();
        Ok(self.chain.ensure_twin(Some(&hosts.join(RELAY_SEPARATOR)), Some(&key)).await?)
    }

    /// The account's twin.
    pub(crate) async fn twin(&self) -> anyhow::Result<u32> {
        let twin = self.chain.chain().twin_of_account(self.chain.account()).await?;
        twin.context("this account has no twin on this grid: run `grid login` again")
    }

    /// Connects to the relays.
    pub(crate) async fn bus(&self) -> anyhow::Result<Bus> {
        let twin = TwinId::new(self.twin().await?).context("the chain says that we are twin 0")?;
        let config = PeerConfig {
            twin,
            // Several commands may run at a time.
            session: Some(format!("grid-{}", std::process::id())),
            relays: self.relays()?,
            encryption: Some(Version::V1),
            roots: self.roots.clone(),
            limits: Default::default(),
        };
        let twins = Arc::new(CachedTwins::new(Arc::new(self.chain.chain().clone())));
        let identity = Arc::clone(&self.identity);
        let peer = Peer::start(config, identity, twins, Commands::default())?;
        ensure!(peer.wait_connected(CONNECT_TIME_MAX).await, "no relay can be reached");
        Ok(Bus { peer, chain: self.chain.chain().clone() })
    }
}

/// A connection to nodes.
pub(crate) struct Bus {
    peer: Peer,
    chain: Chain,
}

impl Bus {
    /// Asks a node something that changes nothing.
    pub(crate) async fn ask(
        &self,
        node: u32,
        command: &str,
        payload: &impl Serialize,
    ) -> anyhow::Result<Vec<u8>> {
        self.call(node, command, serde_json::to_vec(payload)?, Retry::Reads).await
    }

    /// Tells a node something.
    pub(crate) async fn tell(
        &self,
        node: u32,
        command: &str,
        payload: Vec<u8>,
    ) -> anyhow::Result<()> {
        self.call(node, command, payload, Retry::Never).await.map(drop)
    }

    async fn call(
        &self,
        node: u32,
        command: &str,
        payload: Vec<u8>,
        retry: Retry,
    ) -> anyhow::Result<Vec<u8>> {
        let absent = || NotFound(format!("there is no node {node}"));
        let known = self.chain.node(node).await?.ok_or_else(absent)?;
        let twin =
            TwinId::new(known.twin_id).with_context(|| format!("node {node} has no twin"))?;
        let call = Call::new(twin, command, payload).time_max(ANSWER_TIME_MAX).retry(retry);
        let answer = self.peer.call(call.fail_fast(true)).await;
        Ok(answer.with_context(|| format!("node {node}, {command}"))?.to_vec())
    }
}
