//! OCI and Docker images become trees: no daemon, no privilege, nothing unpacked.
//!
//! ```text
//! layout directory ─┐
//! layout tar        ├─ Source ─ index ─ manifest ─ config ──────────────> .startup.toml, tags
//! docker-save tar   │                      └─ layers ─ spool ─ layer ──> Tree + LayerContents
//! registry ─────────┘                        digest    diff_id
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`reference`](mod@reference) | names of images in registries |
//! | [`layout`] | images in directories and tars |
//! | [`registry`] | images in registries |
//! | [`manifest`] | from an index to one image: platform, manifest, configuration |
//! | [`spool`] | digests and decompression, within bounds |
//! | [`tar`], [`layer`] | archives, and how they make a tree |
//! | [`config`] | what becomes of the image's configuration |
//! | [`contents`] | where the packer finds the files' bytes |
//!
//! Everything here takes hostile images. Nothing is decompressed before its digest is checked,
//! nothing is parsed before its `diff_id` is, and [`Limits`] bound what an image may cost.

pub mod config;
pub mod contents;
pub mod digest;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod reference;
pub mod region;
pub mod registry;
pub mod spool;
pub mod tar;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use self::config::STARTUP_NAME;
use self::contents::LayerContents;
use self::digest::Digest;
use self::layer::{LayerError, Rootfs, TreeLimits};
use self::manifest::{Image, Source};
use self::registry::{Registry, RegistryOptions};
use self::spool::{Spool, SpoolLimits};
use crate::progress::{Cancelled, Progress};
use crate::tree::Tree;
use crate::web::WebError;

/// What a conversion may be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which of an index's images: `os/architecture[/variant]`.
    pub platform: Platform,
    /// Which of several images in one file or directory: its tag or reference name.
    pub image: Option<String>,
    /// Where decompressed layers and downloads go; they have no names and vanish with us.
    pub spool_directory: PathBuf,
    /// Bounds.
    pub limits: Limits,
    /// How to speak with registries.
    pub registry: RegistryOptions,
}

/// Bounds on what an image may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// On decompressing.
    pub spool: SpoolLimits,
    /// On the tree.
    pub tree: TreeLimits,
}

/// An operating system and an architecture, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
    /// `v8`; any if there is none.
    pub variant: Option<String>,
}

/// A converted image, ready to be packed.
#[derive(Debug)]
pub struct Converted {
    /// Its tree.
    pub tree: Tree,
    /// Where the bytes of its files are.
    pub contents: LayerContents,
    /// What the flist's `tag` table is to remember of it.
    pub tags: BTreeMap<String, String>,
}

/// Why an image can't be converted. `what` names a blob, a file or a layer.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The system said no.
    #[error("{what}")]
    Io {
        /// What could not be read or written.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source is neither a file nor a directory, nor a name that a registry could know.
    #[error("{0:?}: no such file or directory, and not an image's name: {1}")]
    Source(String, reference::ReferenceError),
    /// A blob that the image names is not there.
    #[error("{what}: missing from the image")]
    Missing {
        /// The blob.
        what: String,
    },
    /// A blob's bytes are not those that its name promises.
    #[error("{what}: digest is {found}, expected {expected}")]
    Digest {
        /// The blob.
        what: String,
        /// What the image says.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// A blob's size is not what its descriptor says.
    #[error("{what}: {found} bytes, expected {expected}")]
    Size {
        /// The blob.
        what: String,
        /// What the image says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A layer's uncompressed bytes are not those that the configuration promises.
    #[error("{what}: uncompressed digest (diff_id) is {found}, expected {expected}")]
    DiffId {
        /// The layer.
        what: String,
        /// What the configuration says.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// A layer grows beyond all measure when it is decompressed.
    #[error("{what}: {blob_size} bytes decompress to more than {limit}")]
    Expands {
        /// The layer.
        what: String,
        /// Compressed size in bytes.
        blob_size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// More bytes of layers than are allowed.
    #[error("{what}: {size} bytes, only {limit} are left of those that all layers may have")]
    Room {
        /// The layer.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// Bytes that may still come.
        limit: u64,
    },
    /// A manifest, index or configuration is not what it should be.
    #[error("{what}: not the JSON expected there")]
    Json {
        /// The blob or file.
        what: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A rule is broken.
    #[error("{what}: {rule}")]
    Rule {
        /// The blob or file.
        what: String,
        /// What it breaks.
        rule: String,
    },
    /// There is no image for the platform.
    #[error("no image for {wanted}; there are: {available}")]
    Platform {
        /// The platform asked for.
        wanted: String,
        /// Those there are.
        available: String,
    },
    /// A layer does not make a tree.
    #[error("layer {layer}")]
    Layer {
        /// The layer, by digest or name.
        layer: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The registry.
    #[error("asking the registry")]
    Registry(#[from] WebError),
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Converts the image in `source`: an OCI layout (directory or tar), the output of `docker save`,
/// or the name of an image in a registry.
///
/// # Errors
/// [`OciError`] names the blob or layer, the file in it, and the rule.
pub fn convert(
    source: &str,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Converted, OciError> {
    let mut spool = Spool::new(options.spool_directory.clone(), options.limits.spool);
    let source = open(source, options, &mut spool, progress)?;
    let image = manifest::resolve(source.as_ref(), options, &mut spool, progress)?;
    let (tree, contents) = build(source.as_ref(), &image, options, &mut spool, progress)?;
    let mut tags = image.run.tags();
    if let Some(digest) = &image.digest {
        tags.insert("oci.digest".to_owned(), digest.to_string());
    }
    if let Some(name) = source.name() {
        tags.insert("oci.reference".to_owned(), name);
    }
    Ok(Converted { tree, contents, tags })
}

/// What is on disk is taken from there; else `source` is a name.
fn open(
    source: &str,
    options: &Options,
    spool: &mut Spool,
    progress: &dyn Progress,
) -> Result<Box<dyn Source>, OciError> {
    let path = Path::new(source);
    if path.exists() {
        return layout::open(path, options.image.as_deref(), spool, progress);
    }
    if path.is_absolute() || source.starts_with('.') {
        let source_error = io::Error::from(io::ErrorKind::NotFound);
        return Err(OciError::Io { what: source.to_owned(), source: source_error });
    }
    let reference = source.parse().map_err(|error| OciError::Source(source.to_owned(), error))?;
    Ok(Box::new(Registry::new(reference, &options.registry)))
}

/// Applies the layers.
fn build(
    source: &dyn Source,
    image: &Image,
    options: &Options,
    spool: &mut Spool,
    progress: &dyn Progress,
) -> Result<(Tree, LayerContents), OciError> {
    let mut rootfs = Rootfs::new(options.limits.tree);
    let mut layers = Vec::with_capacity(image.layers.len());
    let total_size = image.layers.iter().filter_map(|layer| layer.blob.size()).sum();
    progress.begin("layers", total_size);
    for layer in &image.layers {
        let what = layer.blob.to_string();
        let blob = source.open(&layer.blob, spool, progress)?;
        let archive = spool.decompress(&blob, &what, Some(&layer.diff_id), progress)?;
        rootfs
            .apply(&archive, progress)
            .map_err(|source| OciError::Layer { layer: what, source })?;
        layers.push(archive);
        progress.advance(layer.blob.size().unwrap_or_default());
    }
    if let Some(startup) = image.run.startup() {
        if rootfs.tree().find(STARTUP_NAME).is_some() {
            progress.note("the image has a /.startup.toml already; it is kept");
        } else {
            let added = rootfs.add_file(STARTUP_NAME, startup.into_bytes());
            added.map_err(|error| OciError::Rule {
                what: "/.startup.toml".to_owned(),
                rule: error.to_string(),
            })?;
        }
    }
    let (tree, sources) = rootfs.finish();
    let contents = LayerContents::new(&tree, sources, layers);
    Ok((tree, contents))
}

impl Default for Platform {
    /// `linux/amd64`: what nodes run.
    fn default() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None }
    }
}

impl std::str::FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("{text:?}: must be OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT"));
        }
        let variant = parts.get(2).map(|variant| (*variant).to_owned());
        match parts.as_slice() {
            [os, architecture] | [os, architecture, _] => {
                Ok(Self { os: (*os).to_owned(), architecture: (*architecture).to_owned(), variant })
            }
            _ => Err(format!("{text:?}: must be OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}
