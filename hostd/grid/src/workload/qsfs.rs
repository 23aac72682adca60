//! `qsfs`: a file system whose data is spread over ZDB namespaces of other nodes.
//!
//! The one rule is that fewer shards are needed than there are.
//!
//! Challenge: `cache minimal expected redundant_groups redundant_nodes max_zdb_data_dir_size encryption
//! meta.type meta.prefix meta.encryption meta.backend* group.backend* compression.algorithm`, where
//! `encryption = algorithm hex(key)` and `backend = address namespace password`.

use serde::Serialize;

use super::{RuleError, Siblings};
use crate::capacity::{Capacity, GIB};
use crate::challenge::Challenge;
use crate::json;
use crate::secret::{SecretBytes, SecretText};

/// A spread file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Qsfs {
    /// Bytes kept on the node.
    pub cache: u64,
    /// How data is spread.
    pub config: QsfsConfig,
}
json::object!(Qsfs as "zos.QuantumSafeFS" {
    "cache" => cache: "gridtypes.Unit",
    "config" => config,
});

/// How data is spread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct QsfsConfig {
    /// Shards that are enough to read.
    pub minimal_shards: u32,
    /// Shards that are written.
    pub expected_shards: u32,
    /// Groups that may be lost.
    pub redundant_groups: u32,
    /// Nodes of a group that may be lost.
    pub redundant_nodes: u32,
    /// Mebibytes of data that may wait to be spread.
    pub max_zdb_data_dir_size: u32,
    /// How data is encrypted.
    pub encryption: Encryption,
    /// Where it is kept which shards belong to what.
    pub meta: Meta,
    /// Where shards go.
    pub groups: Vec<Group>,
    /// How data is compressed.
    pub compression: Compression,
}
json::object!(QsfsConfig as "zos.QuantumSafeFSConfig" {
    "minimal_shards" => minimal_shards,
    "expected_shards" => expected_shards,
    "redundant_groups" => redundant_groups,
    "redundant_nodes" => redundant_nodes,
    "max_zdb_data_dir_size" => max_zdb_data_dir_size,
    "encryption" => encryption,
    "meta" => meta,
    "groups" => groups,
    "compression" => compression,
});

/// A cipher and its key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Encryption {
    /// `AES`.
    pub algorithm: String,
    /// 32 bytes.
    pub key: SecretBytes,
}
json::object!(Encryption as "zos.Encryption" {
    "algorithm" => algorithm: "zos.EncryptionAlgorithm",
    "key" => key: "zos.EncryptionKey",
});

/// Where it is kept which shards belong to what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Meta {
    /// `zdb`.
    pub r#type: String,
    /// Where.
    pub config: MetaConfig,
}
json::object!(Meta as "zos.QuantumSafeMeta" { "type" => r#type, "config" => config });

/// Namespaces for metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MetaConfig {
    /// What keys begin with.
    pub prefix: String,
    /// How it is encrypted.
    pub encryption: Encryption,
    /// Where it goes.
    pub backends: Vec<ZdbBackend>,
}
json::object!(MetaConfig as "zos.QuantumSafeConfig" {
    "prefix" => prefix,
    "encryption" => encryption,
    "backends" => backends,
});

/// Namespaces that fail together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Group {
    /// The namespaces.
    pub backends: Vec<ZdbBackend>,
}
json::object!(Group as "zos.ZdbGroup" { "backends" => backends });

/// One ZDB namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ZdbBackend {
    /// `address:port`.
    pub address: String,
    /// The namespace's name.
    pub namespace: String,
    /// Its password.
    pub password: SecretText,
}
json::object!(ZdbBackend as "zos.ZdbBackend" {
    "address" => address,
    "namespace" => namespace,
    "password" => password,
});

/// How data is compressed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Compression {
    /// `snappy`.
    pub algorithm: String,
}
json::object!(Compression as "zos.QuantumCompression" { "algorithm" => algorithm });

impl Qsfs {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if self.config.minimal_shards > self.config.expected_shards {
            return Err(RuleError::Shards);
        }
        Ok(())
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        let config = &self.config;
        out.add(self.cache);
        out.add(config.minimal_shards);
        out.add(config.expected_shards);
        out.add(config.redundant_groups);
        out.add(config.redundant_nodes);
        out.add(config.max_zdb_data_dir_size);
        config.encryption.challenge(out);
        out.add(&config.meta.r#type);
        out.add(&config.meta.config.prefix);
        config.meta.config.encryption.challenge(out);
        let groups = config.groups.iter().flat_map(|group| &group.backends);
        for ZdbBackend { address, namespace, password } in
            config.meta.config.backends.iter().chain(groups)
        {
            out.add(address);
            out.add(namespace);
            out.add(password.expose());
        }
        out.add(&config.compression.algorithm);
    }

    /// The process that spreads data takes a CPU and its memory.
    pub(super) fn capacity(&self) -> Capacity {
        Capacity { cru: 1, mru: GIB, sru: self.cache, ..Capacity::default() }
    }
}

impl Encryption {
    fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(&self.algorithm);
        out.add_bytes(self.key.expose());
    }
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct QsfsResult {
    /// Where the file system is on the node.
    pub path: String,
    /// Where its process tells how it is.
    pub metrics_endpoint: String,
}
json::object!(QsfsResult as "zos.QuatumSafeFSResult" {
    "path" => path,
    "metrics_endpoint" => metrics_endpoint,
});
super::result!(QsfsResult);
