//! What `hostd` is told: a file of TOML, and flags that say otherwise.
//!
//! ```toml
//! state = "/var/lib/hostd"                  # everything that must survive, on a disk of its own if possible
//! network = "/etc/hostd/network.json"       # or where to fetch it, https://…; or dev, qa, test, prod
//! farm = 1                                  # the farm's number on the chain; without one it runs nothing
//! status = "/run/hostd/status.sock"         # optional: <state>/status.sock if absent
//! seed_mirrors = ["/mnt/disk2"]             # optional: folders that keep a copy of the node's seed
//!
//! [place]                                   # optional: asked from the network's services if absent
//! country_name = "Belgium"
//! city_name = "Ghent"
//! latitude = 51.05
//! longitude = 3.72
//!
//! [machine]                                 # what of this machine workloads may use
//! ```
//!
//! A key that is unknown is an error, with its line: a misspelt one would else be a setting that silently
//! is not there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hostd_node::{EngineConfig, Place};
use serde::{Deserialize, Serialize};

/// Largest file that is read, in bytes.
const CONFIG_SIZE_MAX: usize = 1 << 20;
/// The socket's name in the folder of the state.
const STATUS: &str = "status.sock";

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of everything that must survive.
    pub state: PathBuf,
    /// Path or address of `network.json`, or an environment of the grid: `dev`, `qa`, `test`, `prod`.
    pub network: String,
    /// The farm that it belongs to; 0 for none.
    #[serde(default)]
    pub farm: u32,
    /// The socket that tells how it is; see [`Config::status_path`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<PathBuf>,
    /// Folders that keep a copy of the seed, or gave one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seed_mirrors: Vec<PathBuf>,
    /// How long a contract may lag behind the message that needs it, in milliseconds.
    #[serde(default = "confirm_patience_ms")]
    pub confirm_patience_ms: u64,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What of this machine workloads may use. The library does not read it; who makes the host does.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub machine: toml::Table,
}

fn confirm_patience_ms() -> u64 {
    u64::try_from(EngineConfig::CONFIRM_PATIENCE.as_millis()).unwrap_or(u64::MAX)
}

/// Why a configuration is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Larger than such a file can be.
    #[error("{path} has {size} bytes, and at most {CONFIG_SIZE_MAX} are read")]
    Size {
        /// Which file.
        path: PathBuf,
        /// How large it is.
        size: usize,
    },
    /// Not this TOML.
    #[error("{path}: {source}")]
    Toml {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What it is.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// With these, and nothing else.
    pub fn new(state: impl Into<PathBuf>, network: impl Into<String>, farm: u32) -> Self {
        Self {
            state: state.into(),
            network: network.into(),
            farm,
            status: None,
            seed_mirrors: Vec::new(),
            confirm_patience_ms: confirm_patience_ms(),
            place: None,
            machine: toml::Table::new(),
        }
    }

    /// Reads a file. [`Config::check`] is for when flags have said what they say.
    ///
    /// # Errors
    ///
    /// It can't be read, or is not such a file; with the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |source| ConfigError::Read { path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(error)?;
        if bytes.len() > CONFIG_SIZE_MAX {
            return Err(ConfigError::Size { path: path.to_owned(), size: bytes.len() });
        }
        let text = String::from_utf8_lossy(&bytes);
        toml::from_str(&text).map_err(|source| {
            let source = Box::new(source);
            ConfigError::Toml { path: path.to_owned(), source }
        })
    }

    /// Checks what a type can't say.
    ///
    /// # Errors
    ///
    /// The first value that makes no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: &dyn std::fmt::Display, reason: &str| ConfigError::Value {
            key,
            value: value.to_string(),
            reason: reason.to_owned(),
        };
        let folders = [("state", Some(&self.state)), ("status", self.status.as_ref())];
        let mirrors = self.seed_mirrors.iter().map(|folder| ("seed_mirrors", Some(folder)));
        for (key, path) in folders.into_iter().chain(mirrors) {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(wrong(key, &path.display(), "a path begins with /"));
            }
        }
        if self.network.is_empty() {
            return Err(wrong("network", &"\"\"", "path or address of network.json"));
        }
        match &self.place {
            Some(place) => {
                let checked = place.check();
                checked.map_err(|error| wrong("place", &place.country_name, &error.to_string()))
            }
            None => Ok(()),
        }
    }

    /// Where the status is told.
    pub fn status_path(&self) -> PathBuf {
        self.status.clone().unwrap_or_else(|| self.state.join(STATUS))
    }

    /// How long a contract may lag behind the message that needs it.
    pub(crate) fn confirm_patience(&self) -> Duration {
        Duration::from_millis(self.confirm_patience_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "state = \"/s\"\nnetwork = \"/n.json\"\nfarm = 1\n";

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostd.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path).and_then(|config| config.check().map(|()| config))
    }

    #[test]
    fn three_lines_are_enough() {
        let config = read(LEAST).unwrap();
        assert_eq!(config, Config::new("/s", "/n.json", 1));
        assert_eq!(config.status_path(), Path::new("/s/status.sock"));
        assert_eq!(config.confirm_patience(), EngineConfig::CONFIRM_PATIENCE);
        // And two, for a machine that is nobody's yet.
        assert_eq!(read(&LEAST.replace("farm = 1\n", "")).unwrap().farm, 0);
    }

    #[test]
    fn what_is_shown_is_read_again() {
        let place = "[place]\ncountry_name = \"Belgium\"\nlatitude = 51.05\nlongitude = 3.72\n";
        let machine = "[machine]\npools = [{path = \"/p\"}]\n";
        let config = read(&format!("{LEAST}status = \"/x\"\n{place}{machine}")).unwrap();
        assert_eq!(config.place.as_ref().unwrap().latitude, 51.05);
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn mistakes_are_named() {
        let refusal = |text: &str| read(text).unwrap_err().to_string();
        let text = refusal(&format!("{LEAST}frm = 2\n"));
        assert!(text.contains("line 4") && text.contains("unknown field `frm`"), "{text}");
        let text = refusal(&LEAST.replace("farm = 1", "farm = \"1\""));
        assert!(text.contains("line 3"), "{text}");
        assert!(refusal("farm = 1").contains("missing field `state`"));
        let text = refusal(&LEAST.replace("\"/s\"", "\"s\""));
        assert_eq!(text, "state = s: a path begins with /");
        let place = "[place]\ncountry_name = \"Mars\"\nlatitude = 151.0\nlongitude = 3.72\n";
        let text = refusal(&format!("{LEAST}{place}"));
        assert_eq!(text, "place = Mars: latitude 151 is not between -90 and 90");
        let large = " ".repeat(CONFIG_SIZE_MAX + 1);
        assert!(refusal(&large).contains("at most"));
    }
}
