//! What settings mean: every value is checked against its rule, and against the others.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zdb_engine::{Durability, Mode, Options, Password};

use super::{Config, ConfigError, DATA, INDEX, PORT, Settings, read_secret, value};
use crate::commands::parse_durability;
use crate::event_loop::Address;

/// Longest administrator's password, in bytes.
const ADMIN_SIZE_MAX: usize = 128;

impl Settings {
    /// What all of it means.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<Config, ConfigError> {
        if self.protect && self.admin.is_none() {
            return Err(ConfigError::Together("--protect needs --admin"));
        }
        if self.dualnet && self.socket.is_none() {
            return Err(ConfigError::Together("--dualnet needs --socket"));
        }
        let addresses = self.addresses()?;
        let instance = addresses.first().map(Address::to_string).unwrap_or_default();
        let secret = read_secret(self.keyfile.as_deref(), self.passphrase_file.as_deref())?;
        let mut engine = self.engine()?;
        engine.secret.clone_from(&secret);
        let policy = crate::core::Policy {
            admin: self.admin()?,
            is_protected: self.protect,
            mode: self.mode()?,
            durability: self.durability()?,
            default_size_max: size("maxsize", self.maxsize.as_deref())?,
            has_test_commands: self.test_commands,
            instance,
            hook: self.hook.clone(),
            rotate: self.rotate.map(|seconds| Duration::from_secs(seconds.into())),
            secret,
            follower_count_min: self.semi_sync.unwrap_or(0),
        };
        Ok(Config { engine, policy, addresses, metrics: self.metrics_listen })
    }

    fn engine(&self) -> Result<Options, ConfigError> {
        let data = absolute(self.data.as_deref().unwrap_or_else(|| Path::new(DATA)))?;
        let index = absolute(self.index.as_deref().unwrap_or_else(|| Path::new(INDEX)))?;
        if data == index {
            return Err(ConfigError::Together("--data and --index must be different folders"));
        }
        let mut options = Options::new(data, index);
        if let Some(text) = self.datasize.as_deref() {
            let rule = "512K to 4G (less 1 byte)";
            let limit = size("datasize", Some(text))?.and_then(|size| u32::try_from(size).ok());
            let limit = limit.filter(|limit| *limit >= Options::SEGMENT_SIZE_MIN);
            options.segment_size = limit.ok_or_else(|| value("datasize", text, rule))?;
        }
        if let Some(reserve) = size("reserve", self.reserve.as_deref())? {
            options.reserve_size = reserve;
        }
        Ok(options)
    }

    fn addresses(&self) -> Result<Vec<Address>, ConfigError> {
        let listen = self.listen.as_deref().unwrap_or("::");
        let ip: IpAddr = listen
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .map_err(|_| value("listen", listen, "an IPv4 or IPv6 address"))?;
        let network = Address::Tcp(SocketAddr::new(ip, self.port.unwrap_or(PORT)));
        Ok(match &self.socket {
            None => vec![network],
            Some(path) if self.dualnet => vec![network, Address::Unix(path.clone())],
            Some(path) => vec![Address::Unix(path.clone())],
        })
    }

    fn admin(&self) -> Result<Option<Password>, ConfigError> {
        let Some(admin) = &self.admin else { return Ok(None) };
        if admin.is_empty() || admin.len() > ADMIN_SIZE_MAX {
            return Err(value("admin", "...", "a password has 1 to 128 bytes"));
        }
        Ok(Some(Password::new(admin.as_bytes())))
    }

    fn mode(&self) -> Result<Option<Mode>, ConfigError> {
        match self.mode.as_deref() {
            None | Some("mix") => Ok(None),
            Some("user") => Ok(Some(Mode::User)),
            Some("seq" | "direct") => Ok(Some(Mode::Sequential)),
            Some(other) => Err(value("mode", other, "user, seq or direct")),
        }
    }

    fn durability(&self) -> Result<Option<Durability>, ConfigError> {
        let given = usize::from(self.sync)
            + usize::from(self.synctime.is_some())
            + usize::from(self.durability.is_some());
        if given > 1 {
            let rule = "give one of --durability, --sync and --synctime";
            return Err(ConfigError::Together(rule));
        }
        if self.sync {
            return Ok(Some(Durability::Group));
        }
        if let Some(seconds) = self.synctime {
            if seconds == 0 {
                return Err(value("synctime", "0", "at least 1 second"));
            }
            return Ok(Some(Durability::Interval(Duration::from_secs(seconds.into()))));
        }
        let Some(text) = self.durability.as_deref() else { return Ok(None) };
        let rule = "none, group or interval:MILLISECONDS";
        let level = parse_durability(text.as_bytes());
        level.map(Some).ok_or_else(|| value("durability", text, rule))
    }
}

/// Hooks and backups are told where files are, and have folders of their own.
fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })
}

/// `4096`, `512K`, `64M`, `2G`, `1T`: bytes, with binary suffixes in either case.
fn size(flag: &'static str, text: Option<&str>) -> Result<Option<u64>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let rule = "a whole number of bytes, with K, M, G or T behind it or not";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(value(flag, text, rule)),
    };
    let number: u64 = digits.parse().map_err(|_| value(flag, text, rule))?;
    let size = number.checked_mul(1 << shift).ok_or_else(|| value(flag, text, rule))?;
    Ok(Some(size))
}
