//! Folders that a command works on without a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use zdb_engine::storage::Disk;
use zdb_engine::{Engine, Name, Namespace, Secret};
use zdb_server::config::Settings;

/// Where namespaces are.
#[derive(Args)]
pub(crate) struct Folders {
    /// Folder of the data files
    #[arg(long, value_name = "DIR", default_value = "./zdb-data")]
    data: PathBuf,
    /// Folder of the index files
    #[arg(long, value_name = "DIR", default_value = "./zdb-index")]
    index: PathBuf,
    /// File with the key of encrypted namespaces
    #[arg(long, value_name = "PATH")]
    keyfile: Option<PathBuf>,
    /// File with the passphrase that this key is made of
    #[arg(long, value_name = "PATH", conflicts_with = "keyfile")]
    passphrase_file: Option<PathBuf>,
}

/// Open folders.
pub(crate) struct Opened {
    /// Their namespaces.
    pub(crate) engine: Engine,
    secret: Option<Secret>,
}

impl Folders {
    /// Takes them; fails if a server has them.
    pub(crate) fn open(&self) -> anyhow::Result<Opened> {
        self.open_in(&self.data, &self.index)
    }

    /// Takes others, with the same key.
    pub(crate) fn open_in(&self, data: &Path, index: &Path) -> anyhow::Result<Opened> {
        let settings = Settings {
            data: Some(data.to_owned()),
            index: Some(index.to_owned()),
            keyfile: self.keyfile.clone(),
            passphrase_file: self.passphrase_file.clone(),
            // Nothing is served that would need room on a full disk.
            reserve: Some("0".to_owned()),
            ..Settings::default()
        };
        let config = settings.check()?;
        let engine = Engine::open(Arc::new(Disk), config.engine)
            .with_context(|| format!("folders {} and {}", data.display(), index.display()))?;
        Ok(Opened { engine, secret: config.policy.secret })
    }
}

impl Opened {
    /// Loads a namespace, with the key if it needs one.
    pub(crate) fn load(&self, name: &Name) -> anyhow::Result<Namespace> {
        let context = || format!("namespace {name}");
        let mut namespace = self.engine.load(name).with_context(context)?;
        if let Some(secret) = &self.secret
            && namespace.stats().key_needed
        {
            namespace.unlock(secret).with_context(context)?;
        }
        Ok(namespace)
    }
}

/// A name from the command line.
pub(crate) fn parse_name(text: &str) -> Result<Name, String> {
    Name::new(text.as_bytes()).map_err(|error| error.to_string())
}
