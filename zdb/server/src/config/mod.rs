//! What the server is to do: flags, and a file for what flags leave out.
//!
//! Flags are the existing server's, with its names and meanings (`reference: zdb 2.1`), and some of our
//! own. A flag overrides the file, the file overrides the defaults; `--print-config` shows the result.
//! Every value is checked, and an error names the flag and its rule.

mod check;
mod secrets;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
pub use secrets::{read_key, read_passphrase, read_secret};
use serde::{Deserialize, Serialize};
use zdb_engine::Options;

use crate::event_loop::Address;

/// The default port.
pub const PORT: u16 = 9900;
const DATA: &str = "./zdb-data";
const INDEX: &str = "./zdb-index";

/// Flags, and keys of the file. What is absent has its default.
#[derive(Args, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Settings {
    /// Folder of the data files
    #[arg(long, value_name = "DIR", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Folder of the index files; another than --data
    #[arg(long, value_name = "DIR", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<PathBuf>,
    /// The one mode of all namespaces: user, seq (or direct); without, each chooses with NSSET
    #[arg(long, value_name = "MODE", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Most bytes of a data file, such as 64M: 512K to 4G
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datasize: Option<String>,
    /// Most bytes of values in the default namespace
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maxsize: Option<String>,
    /// Bytes of disk kept back so that deleting works on a full one
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<String>,
    /// Start a new data file after so many seconds, if the current one was written to
    #[arg(long, value_name = "SECONDS", help_heading = "Storage")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate: Option<u32>,

    /// When a reply to a write is sent: none, group (after a sync, the default), interval:MILLISECONDS.
    /// For new namespaces and the default one; NSSET changes it for one
    #[arg(long, value_name = "LEVEL", help_heading = "Durability")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// The same as --durability group
    #[arg(long, help_heading = "Durability")]
    pub sync: bool,
    /// The same as --durability interval:SECONDS*1000
    #[arg(long, value_name = "SECONDS", help_heading = "Durability")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synctime: Option<u32>,
    /// Sync before a data file is left for the next; always done, accepted for compatibility
    #[arg(long, help_heading = "Durability")]
    pub secure: bool,
    /// Send a reply only when so many followers have the write, while that many are connected
    #[arg(long, value_name = "COUNT", help_heading = "Durability")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub semi_sync: Option<usize>,

    /// Address to listen on; :: is all, IPv4 too
    #[arg(long, value_name = "ADDRESS", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Port to listen on
    #[arg(long, value_name = "PORT", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Unix socket to listen on, instead of the network
    #[arg(long, value_name = "PATH", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// With --socket: listen on the network too
    #[arg(long, help_heading = "Clients")]
    pub dualnet: bool,
    /// Serve figures for Prometheus on this address, as ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,

    /// The administrator's password; without one, every client is administrator. Visible to others in
    /// the list of processes: better in the file
    #[arg(long, value_name = "PASSWORD", help_heading = "Rights")]
    #[serde(skip_serializing)]
    pub admin: Option<String>,
    /// The default namespace is read-only without the administrator's password
    #[arg(long, help_heading = "Rights")]
    pub protect: bool,
    /// File with a key (32 bytes, or 64 hex digits): new namespaces are encrypted with it, and
    /// namespaces' passwords sealed
    #[arg(long, value_name = "PATH", help_heading = "Rights")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyfile: Option<PathBuf>,

    /// File with a passphrase that the key is made of, instead of --keyfile
    #[arg(long, value_name = "PATH", help_heading = "Rights")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase_file: Option<PathBuf>,

    /// Program that is told what happens
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<PathBuf>,
    /// Log to this file, not to standard error
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<PathBuf>,
    /// Log more
    #[arg(long, help_heading = "Process")]
    pub verbose: bool,
    /// Serve in the background; returns when clients are served
    #[arg(long, help_heading = "Process")]
    pub background: bool,
    /// Enable STOP and KSCAN, for tests
    #[arg(long, help_heading = "Process")]
    pub test_commands: bool,
}

/// What is wrong with a flag or the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value breaks its rule.
    #[error("--{flag} {value}: {rule}")]
    Value {
        /// The flag's name.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// Two flags that exclude or need one another.
    #[error("{0}")]
    Together(&'static str),
    /// The file can't be read.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("{}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// What all values mean, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and how to store.
    pub engine: Options,
    /// How to treat clients.
    pub policy: crate::core::Policy,
    /// Where to listen: network, socket, or both.
    pub addresses: Vec<Address>,
    /// Where to serve figures.
    pub metrics: Option<SocketAddr>,
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::File`], [`ConfigError::Syntax`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// These, and from `file` what these leave out.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            data: self.data.or(file.data),
            index: self.index.or(file.index),
            mode: self.mode.or(file.mode),
            datasize: self.datasize.or(file.datasize),
            maxsize: self.maxsize.or(file.maxsize),
            reserve: self.reserve.or(file.reserve),
            rotate: self.rotate.or(file.rotate),
            durability: self.durability.or(file.durability),
            sync: self.sync || file.sync,
            synctime: self.synctime.or(file.synctime),
            secure: self.secure || file.secure,
            semi_sync: self.semi_sync.or(file.semi_sync),
            listen: self.listen.or(file.listen),
            port: self.port.or(file.port),
            socket: self.socket.or(file.socket),
            dualnet: self.dualnet || file.dualnet,
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            admin: self.admin.or(file.admin),
            protect: self.protect || file.protect,
            keyfile: self.keyfile.or(file.keyfile),
            passphrase_file: self.passphrase_file.or(file.passphrase_file),
            hook: self.hook.or(file.hook),
            logfile: self.logfile.or(file.logfile),
            verbose: self.verbose || file.verbose,
            background: self.background || file.background,
            test_commands: self.test_commands || file.test_commands,
        }
    }

    /// With defaults for what is absent, for people to read. Without the password.
    ///
    /// # Errors
    /// If a path is not text.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut all = self.clone();
        all.data.get_or_insert_with(|| PathBuf::from(DATA));
        all.index.get_or_insert_with(|| PathBuf::from(INDEX));
        all.listen.get_or_insert_with(|| Ipv6Addr::UNSPECIFIED.to_string());
        all.port.get_or_insert(PORT);
        toml::to_string(&all)
    }
}

fn value(flag: &'static str, value: &str, rule: &'static str) -> ConfigError {
    ConfigError::Value { flag, value: value.to_owned(), rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings::default();
        change(&mut settings);
        settings
    }

    #[test]
    fn errors_name_the_flag_and_its_rule() {
        let broken: [(Settings, &str); 9] = [
            (settings(|all| all.datasize = Some("1K".into())), "--datasize 1K: 512K to 4G"),
            (settings(|all| all.datasize = Some("4G".into())), "--datasize 4G: 512K to 4G"),
            (settings(|all| all.maxsize = Some("x".into())), "--maxsize x: a whole number"),
            (settings(|all| all.mode = Some("block".into())), "--mode block: user, seq or direct"),
            (settings(|all| all.listen = Some("host".into())), "--listen host: an IPv4 or IPv6"),
            (settings(|all| all.protect = true), "--protect needs --admin"),
            (settings(|all| all.dualnet = true), "--dualnet needs --socket"),
            (settings(|all| (all.sync, all.synctime) = (true, Some(1))), "give one of"),
            (
                settings(|all| {
                    all.keyfile = Some("/k".into());
                    all.passphrase_file = Some("/p".into());
                }),
                "give one of --keyfile and --passphrase-file",
            ),
        ];
        for (settings, text) in broken {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn flags_override_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zdb.toml");
        std::fs::write(&path, "port = 1\ndata = \"d\"\nadmin = \"secret\"\n").unwrap();
        let file = Settings::read(&path).unwrap();
        let all = settings(|flags| flags.port = Some(2)).or(file);
        assert_eq!((all.port, all.data.as_deref()), (Some(2), Some(Path::new("d"))));
        let shown = all.to_toml().unwrap();
        assert!(shown.contains("port = 2") && !shown.contains("secret"), "{shown}");
        std::fs::write(&path, "prot = 1\n").unwrap();
        let error = Settings::read(&path).err().unwrap();
        assert!(error.to_string().ends_with("zdb.toml"));
    }

    #[test]
    fn sockets_replace_the_network_unless_both_are_asked_for() {
        let socket = Some(PathBuf::from("/s"));
        let only = settings(|all| all.socket.clone_from(&socket)).check().unwrap();
        assert_eq!(only.addresses, [Address::Unix("/s".into())]);
        let both = settings(|all| {
            all.socket.clone_from(&socket);
            all.dualnet = true;
        });
        let both = both.check().unwrap();
        assert_eq!(both.addresses.len(), 2);
        assert_eq!(both.policy.instance, "tcp://[::]:9900");
    }
}
