//! Folders that a command works on without a server.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use zdb_engine::storage::Disk;
use zdb_engine::{Engine, MasterKey, Name, Namespace};
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
}

/// Open folders.
pub(crate) struct Opened {
    /// Their namespaces.
    pub(crate) engine: Engine,
    key: Option<MasterKey>,
}

impl Folders {
    /// Takes them; fails if a server has them.
    pub(crate) fn open(&self) -> anyhow::Result<Opened> {
        let settings = Settings {
            data: Some(self.data.clone()),
            index: Some(self.index.clone()),
            keyfile: self.keyfile.clone(),
            // Nothing is served that would need room on a full disk.
            reserve: Some("0".to_owned()),
            ..Settings::default()
        };
        let config = settings.check()?;
        let engine = Engine::open(Arc::new(Disk), config.engine).with_context(|| {
            format!("folders {} and {}", self.data.display(), self.index.display())
        })?;
        Ok(Opened { engine, key: config.policy.master_key })
    }
}

impl Opened {
    /// Loads a namespace, with the key if it needs one.
    pub(crate) fn load(&self, name: &Name) -> anyhow::Result<Namespace> {
        let context = || format!("namespace {name}");
        let mut namespace = self.engine.load(name).with_context(context)?;
        if let Some(key) = &self.key
            && namespace.stats().key_needed
        {
            namespace.unlock(key).with_context(context)?;
        }
        Ok(namespace)
    }
}

/// A name from the command line.
pub(crate) fn parse_name(text: &str) -> Result<Name, String> {
    Name::new(text.as_bytes()).map_err(|error| error.to_string())
}
