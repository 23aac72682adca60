//! Where the grid is: `network.json`, looked at again and again, and the last good one kept.
//!
//! It comes from a file or an address, or an environment of the grid is named: then what is known of that
//! counts where its file, which the grid publishes, says nothing or can't be had. What of it makes no sense is passed over key by key
//! (`hostd_grid::network`); one without a chain or a relay is of no use, and then the last good one
//! counts, also after a restart. When it changes, whoever [watches](Networks::watch) is told.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostd_grid::network::{NETWORK_SIZE_MAX, Network};
use hostd_grid::run_mode::RunMode;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::files;

/// How often a file is looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is fetched.
const FETCH_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How often, after it could not be.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);
/// How long a fetch may take.
const FETCH_TIME_MAX: Duration = Duration::from_secs(20);
/// Largest file of certificates, in bytes.
const AUTHORITIES_SIZE_MAX: u64 = 1 << 20;
/// The last good file, and its certificates beside it.
const COPY: &str = "network.json";
const AUTHORITIES_COPY: &str = "authorities.pem";

/// A network, with the certificates that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What the file says.
    pub network: Network,
    /// Certificates of authorities beside those that everyone trusts, in PEM.
    pub authorities: Option<Vec<u8>>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can't be fetched.
    #[error("{url}: {reason}")]
    Fetch {
        /// From where.
        url: String,
        /// Why.
        reason: String,
    },
    /// It says nothing that is of use.
    #[error("{from}: {reason}")]
    Useless {
        /// Which.
        from: String,
        /// Why.
        reason: String,
    },
}

/// Where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Url(String),
    /// An environment, and where its file is.
    Mode(RunMode, String),
}

impl Source {
    fn new(text: &str) -> Self {
        if let Some(mode) = RunMode::of_name(text) {
            return Self::Mode(mode, mode.config_url());
        }
        match text.starts_with("http://") || text.starts_with("https://") {
            true => Self::Url(text.to_owned()),
            false => Self::File(text.into()),
        }
    }

    /// Whether that was kept of this source: a node that was moved to another environment does not go on in
    /// the one before.
    fn may_be(&self, kept: &Loaded) -> bool {
        match self {
            Self::Mode(mode, _) => kept.network.name == mode.name(),
            Self::File(_) | Self::Url(_) => true,
        }
    }

    /// What is known without asking anybody.
    fn built_in(&self) -> Option<Loaded> {
        match self {
            Self::Mode(mode, _) => Some(Loaded { network: mode.network(), authorities: None }),
            Self::File(_) | Self::Url(_) => None,
        }
    }

    fn load(&self) -> Result<Loaded, LoadError> {
        match self {
            Self::File(path) => load_file(path),
            Self::Url(url) => {
                let error = |reason: String| LoadError::Fetch { url: url.clone(), reason };
                let bytes = fetch(url, NETWORK_SIZE_MAX as u64).map_err(error)?;
                // An address of certificates would have to be trusted without certificates.
                Ok(Loaded { network: useful(parse(&bytes, url)?, url)?, authorities: None })
            }
            Self::Mode(mode, url) => {
                let error = |reason: String| LoadError::Fetch { url: url.clone(), reason };
                let bytes = fetch(url, NETWORK_SIZE_MAX as u64).map_err(error)?;
                let said = Network { name: mode.name().to_owned(), ..parse(&bytes, url)? };
                let network = said.or(mode.network());
                Ok(Loaded { network: useful(network, url)?, authorities: None })
            }
        }
    }
}

/// Reads what is at an address.
pub(crate) fn fetch(url: &str, size_max: u64) -> Result<Vec<u8>, String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(FETCH_TIME_MAX));
    let agent: ureq::Agent = config.max_redirects(3).build().into();
    let mut response = agent.get(url).call().map_err(|error| error.to_string())?;
    let limited = response.body_mut().with_config().limit(size_max);
    limited.read_to_vec().map_err(|error| error.to_string())
}

/// Reads a file, and the certificates that it names.
pub fn load_file(path: &Path) -> Result<Loaded, LoadError> {
    let error = |path: &Path, source| LoadError::Io { path: path.to_owned(), source };
    let found = files::read(path, NETWORK_SIZE_MAX as u64).map_err(|it| error(path, it))?;
    let bytes = found.ok_or_else(|| error(path, io::ErrorKind::NotFound.into()))?;
    let from = path.display().to_string();
    let network = useful(parse(&bytes, &from)?, &from)?;
    let authorities = match network.ca_path(path.parent().unwrap_or_else(|| Path::new("/"))) {
        None => None,
        Some(path) => {
            let found = files::read(&path, AUTHORITIES_SIZE_MAX).map_err(|it| error(&path, it))?;
            Some(found.ok_or_else(|| error(&path, io::ErrorKind::NotFound.into()))?)
        }
    };
    Ok(Loaded { network, authorities })
}

fn parse(bytes: &[u8], from: &str) -> Result<Network, LoadError> {
    let useless = |reason: String| LoadError::Useless { from: from.to_owned(), reason };
    let reading = Network::parse(bytes).map_err(|error| useless(error.to_string()))?;
    for problem in &reading.problems {
        warn!(from, problem, "passed over");
    }
    Ok(reading.network)
}

/// One that names a chain and a relay.
fn useful(network: Network, from: &str) -> Result<Network, LoadError> {
    let useless = |reason: String| LoadError::Useless { from: from.to_owned(), reason };
    if network.substrate_urls.is_empty() {
        return Err(useless("it names no chain (substrate_urls)".to_owned()));
    }
    if network.relays_urls.is_empty() {
        return Err(useless("it names no relay (relays_urls)".to_owned()));
    }
    Ok(network)
}

/// The network as it was last seen.
pub struct Networks {
    source: Source,
    folder: PathBuf,
    current: watch::Sender<Loaded>,
}

impl Networks {
    /// Loads it, or what was kept of it in `folder`, or what is known of its environment. Waits for disk and
    /// network.
    ///
    /// # Errors
    ///
    /// It can't be loaded, and nothing was kept or is known.
    pub fn open(source: &str, folder: &Path) -> Result<Self, LoadError> {
        Self::open_source(Source::new(source), folder)
    }

    fn open_source(source: Source, folder: &Path) -> Result<Self, LoadError> {
        let loaded = match source.load() {
            Ok(loaded) => {
                keep(folder, &loaded);
                loaded
            }
            Err(error) => {
                let kept = load_file(&folder.join(COPY)).ok();
                match kept.filter(|kept| source.may_be(kept)).or_else(|| source.built_in()) {
                    Some(known) => {
                        warn!(%error, "the last good network.json counts");
                        known
                    }
                    None => return Err(error),
                }
            }
        };
        let (current, _) = watch::channel(loaded);
        Ok(Self { source, folder: folder.to_owned(), current })
    }

    /// As it is, and whatever it becomes.
    pub fn watch(&self) -> watch::Receiver<Loaded> {
        self.current.subscribe()
    }

    /// Looks at it for ever.
    pub async fn refresh(&self) {
        let is_file = matches!(self.source, Source::File(_));
        let usual = if is_file { FILE_INTERVAL } else { FETCH_INTERVAL };
        let mut pause = usual;
        loop {
            sleep(pause).await;
            pause = if self.look().await { usual } else { usual.min(RETRY_INTERVAL) };
        }
    }

    /// Looks at it once, and says whether that was of use.
    async fn look(&self) -> bool {
        let (source, folder, before) =
            (self.source.clone(), self.folder.clone(), self.current.borrow().clone());
        let looked = tokio::task::spawn_blocking(move || {
            let loaded = source.load()?;
            if loaded != before {
                keep(&folder, &loaded);
            }
            Ok::<_, LoadError>(loaded)
        });
        match looked.await {
            Ok(Ok(loaded)) => {
                let changed = self.current.send_if_modified(|current| {
                    let is_new = *current != loaded;
                    *current = loaded;
                    is_new
                });
                if changed {
                    info!("network.json has changed");
                }
                true
            }
            Ok(Err(error)) => {
                warn!(%error, "network.json is not looked at");
                false
            }
            Err(_) => false,
        }
    }
}

/// Keeps it for when it can't be loaded.
fn keep(folder: &Path, loaded: &Loaded) {
    let mut network = loaded.network.clone();
    let kept = match &loaded.authorities {
        None => {
            network.ca_file = String::new();
            Ok(())
        }
        Some(authorities) => {
            network.ca_file = AUTHORITIES_COPY.to_owned();
            files::write(&folder.join(AUTHORITIES_COPY), authorities)
        }
    };
    let kept = kept.and_then(|()| files::write(&folder.join(COPY), &network.to_json()));
    if let Err(error) = kept {
        warn!(%error, "network.json is not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, relay: &str, ca: &str) {
        let text = format!(
            r#"{{"substrate_urls": ["ws://127.0.0.1:1"], "relays_urls": ["{relay}"],
                "kyc_url": 7, "ca_file": "{ca}"}}"#
        );
        std::fs::write(path, text).unwrap();
    }

    #[tokio::test]
    async fn the_last_good_one_counts() {
        let (outside, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = outside.path().join("network.json");
        let source = path.to_str().unwrap();
        assert!(Networks::open(source, state.path()).is_err(), "there is none at all");
        std::fs::write(outside.path().join("ca.pem"), b"certificate").unwrap();
        write(&path, "ws://one", "ca.pem");
        let networks = Networks::open(source, state.path()).unwrap();
        let mut watch = networks.watch();
        assert_eq!(watch.borrow_and_update().authorities.as_deref(), Some(&b"certificate"[..]));

        assert!(networks.look().await);
        assert!(!watch.has_changed().unwrap());
        write(&path, "ws://two", "ca.pem");
        assert!(networks.look().await);
        assert_eq!(watch.borrow_and_update().network.relays_urls, ["ws://two"]);
        // A file without a chain is of no use, nor is none.
        for text in [r#"{"substrate_urls": 7, "relays_urls": ["ws://three"]}"#, "{"] {
            std::fs::write(&path, text).unwrap();
            assert!(!networks.look().await);
            assert!(!watch.has_changed().unwrap());
        }
        std::fs::remove_file(&path).unwrap();
        let networks = Networks::open(source, state.path()).unwrap();
        let kept = networks.watch().borrow().clone();
        assert_eq!(kept.network.relays_urls, ["ws://two"]);
        assert_eq!(kept.authorities.as_deref(), Some(&b"certificate"[..]));
    }

    /// Answers so many requests with that, one after another, and then no more.
    fn service(bodies: Vec<String>) -> (String, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/production.json", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            for body in bodies {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = std::io::Read::read(&mut stream, &mut [0; 2048]).unwrap();
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length:";
                let answer = format!("{head} {}\r\n\r\n{body}", body.len());
                std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
            }
        });
        (url, thread)
    }

    #[tokio::test]
    async fn what_an_address_says_is_kept_for_when_it_says_nothing() {
        let state = tempfile::tempdir().unwrap();
        let body = r#"{"substrate_urls": "ws://a", "relays_urls": ["ws://b"]}"#;
        let (url, thread) = service(vec![body.to_owned(), "<html>".to_owned()]);
        let networks = Networks::open(&url, state.path()).unwrap();
        // Somebody answers with a page of theirs.
        assert!(!networks.look().await);
        thread.join().unwrap();
        assert!(!networks.look().await);
        let kept = Networks::open(&url, state.path()).unwrap().watch().borrow().clone();
        assert_eq!(kept.network.relays_urls, ["ws://b"]);
        assert_eq!(kept, networks.watch().borrow().clone());
    }

    #[tokio::test]
    async fn an_environment_is_known_and_its_file_counts_more() {
        let state = tempfile::tempdir().unwrap();
        let open = |mode, url: &str| {
            let networks = Networks::open_source(Source::Mode(mode, url.to_owned()), state.path());
            networks.unwrap().watch().borrow().network.clone()
        };
        let nowhere = "http://127.0.0.1:1/";
        assert_eq!(open(RunMode::Main, nowhere), RunMode::Main.network());
        let (url, thread) = service(vec![r#"{"relays_urls": ["wss://new"]}"#.to_owned()]);
        let network = open(RunMode::Main, &url);
        thread.join().unwrap();
        assert_eq!(network.relays_urls, ["wss://new"]);
        assert_eq!(network.substrate_urls, RunMode::Main.network().substrate_urls);
        // Offline, what was kept counts, but not for another environment.
        assert_eq!(open(RunMode::Main, nowhere), network);
        assert_eq!(open(RunMode::Dev, nowhere), RunMode::Dev.network());
        assert!(matches!(Source::new("prod"), Source::Mode(RunMode::Main, _)));
    }

    #[test]
    fn an_address_is_told_from_a_path() {
        assert!(matches!(Source::new("https://a/b.json"), Source::Url(_)));
        assert!(matches!(Source::new("/etc/network.json"), Source::File(_)));
    }
}
