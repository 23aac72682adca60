//! From a source of blobs to one image: pick from the index, read manifest and configuration.
//!
//! A [`Source`] is where an image's blobs are: a directory, a tar, a registry. It starts with either
//! an OCI index or manifest ([`Root::Oci`]) or `docker save`'s own description ([`Root::Docker`]).

use std::fmt;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::{ImageConfig, RunConfig};
use super::digest::{Algorithm, Digest};
use super::region::{ReadAt, Region, read_exact_at};
use super::spool::Spool;
use super::{OciError, Options, Platform};
use crate::progress::Progress;

/// Largest index, manifest or configuration, in bytes. Registries refuse more than 4 MiB.
pub const JSON_SIZE_MAX: u64 = 4 << 20;
/// Most layers of one image; runtimes stop at about 127.
pub const LAYER_COUNT_MAX: usize = 1024;
/// How deep indexes may nest.
pub const INDEX_DEPTH_MAX: u32 = 4;

const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Where an image's blobs are.
pub trait Source {
    /// What the source begins with.
    ///
    /// # Errors
    /// [`OciError`].
    fn root(&self, spool: &Spool, progress: &dyn Progress) -> Result<Root, OciError>;

    /// A blob, after its size and digest, as far as `blob` tells them, have been checked.
    ///
    /// # Errors
    /// [`OciError::Missing`], [`OciError::Size`], [`OciError::Digest`] and others.
    fn open(&self, blob: &Blob, spool: &Spool, progress: &dyn Progress)
    -> Result<Region, OciError>;

    /// An index or manifest by digest; registries keep them apart from other blobs.
    ///
    /// # Errors
    /// As [`Source::open`].
    fn open_manifest(
        &self,
        blob: &Blob,
        spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        self.open(blob, spool, progress)
    }

    /// The image's full name, if it came by name.
    fn name(&self) -> Option<String> {
        None
    }
}

/// What a source begins with.
#[derive(Clone, Debug)]
pub enum Root {
    /// An OCI index or manifest: what names it in errors, and its bytes.
    Oci {
        /// `index.json` or a digest.
        what: String,
        /// JSON.
        json: Vec<u8>,
        /// Whether `json` is the image's own manifest or index, so that its digest names the image.
        is_image: bool,
    },
    /// `manifest.json` of `docker save`.
    Docker(Vec<u8>),
}

/// A blob as its image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob {
    /// By digest.
    Digest(Digest, Option<u64>),
    /// By its path in a `docker save` tar.
    Member(String),
}

/// A layer: its blob, and what that hashes to when decompressed.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its blob.
    pub blob: Blob,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
}

/// One image.
#[derive(Debug)]
pub struct Image {
    /// Digest of its manifest.
    pub digest: Option<Digest>,
    /// How it wants to be run.
    pub run: RunConfig,
    /// Its layers, from the bottom.
    pub layers: Vec<Layer>,
}

/// An entry of `docker save`'s `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image that the options ask for.
///
/// # Errors
/// [`OciError`] names the index, manifest or configuration and the rule.
pub fn resolve(
    source: &dyn Source,
    options: &Options,
    spool: &mut Spool,
    progress: &dyn Progress,
) -> Result<Image, OciError> {
    let resolver = Resolver { source, options, spool, progress };
    match source.root(spool, progress)? {
        Root::Oci { what, json, is_image } => resolver.oci(what, json, is_image),
        Root::Docker(json) => resolver.docker(&json),
    }
}

struct Resolver<'a> {
    source: &'a dyn Source,
    options: &'a Options,
    spool: &'a Spool,
    progress: &'a dyn Progress,
}

impl Resolver<'_> {
    /// Follows indexes down to a manifest.
    fn oci(&self, mut what: String, mut json: Vec<u8>, is_image: bool) -> Result<Image, OciError> {
        let mut name = self.options.image.as_deref();
        let mut digest = is_image.then(|| Digest::of(Algorithm::Sha256, &json));
        for _ in 0..=INDEX_DEPTH_MAX {
            let document: serde_json::Value = parse(&what, &json)?;
            if document.get("manifests").is_none() {
                return self.manifest(&what, &json, digest);
            }
            let index: ImageIndex = parse(&what, &json)?;
            let chosen = choose(&what, index.manifests(), name, &self.options.platform)?;
            // The name has been found; deeper indexes differ in platforms only.
            name = None;
            let blob = Blob::from_descriptor(chosen)?;
            what = blob.to_string();
            json = self.json(&blob, true)?;
            // The outermost index or manifest is what a reference with this digest means.
            digest = digest.or_else(|| blob.digest().cloned());
        }
        Err(rule(&what, format!("more than {INDEX_DEPTH_MAX} indexes in each other")))
    }

    fn manifest(&self, what: &str, json: &[u8], digest: Option<Digest>) -> Result<Image, OciError> {
        let document: serde_json::Value = parse(what, json)?;
        if document.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
            return Err(rule(what, "a manifest of version 1, which has no digests to check"));
        }
        let manifest: ImageManifest = parse(what, json)?;
        let config = Blob::from_descriptor(manifest.config())?;
        let mut blobs = Vec::new();
        for layer in manifest.layers() {
            let media_type = layer.media_type().to_string();
            if media_type.contains("encrypted") {
                return Err(rule(what, format!("layers of type {media_type} are not supported")));
            }
            blobs.push(Blob::from_descriptor(layer)?);
        }
        self.image(&config, blobs, digest)
    }

    fn docker(&self, json: &[u8]) -> Result<Image, OciError> {
        let what = "manifest.json";
        let entries: Vec<DockerEntry> = parse(what, json)?;
        let entry = match (&self.options.image, entries.as_slice()) {
            (None, [entry]) => entry,
            (Some(name), entries) => {
                let tagged = |entry: &&DockerEntry| {
                    entry.repo_tags.iter().flatten().any(|tag| is_named(tag, name))
                };
                let found = entries.iter().find(tagged);
                found.ok_or_else(|| rule(what, format!("no image {name:?}; {}", tags(entries))))?
            }
            (None, entries) => {
                let rule_text =
                    format!("choose one of several images by --image; {}", tags(entries));
                return Err(rule(what, rule_text));
            }
        };
        let blobs = entry.layers.iter().cloned().map(Blob::Member).collect();
        self.image(&Blob::Member(entry.config.clone()), blobs, None)
    }

    /// Reads the configuration and matches it with the layers.
    fn image(
        &self,
        config: &Blob,
        blobs: Vec<Blob>,
        digest: Option<Digest>,
    ) -> Result<Image, OciError> {
        let what = config.to_string();
        let parsed: ImageConfig = parse(&what, &self.json(config, false)?)?;
        self.check_platform(&parsed)?;
        let diff_ids = parsed.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != blobs.len() || blobs.len() > LAYER_COUNT_MAX {
            let (layers, ids) = (blobs.len(), diff_ids.len());
            let text = format!(
                "{ids} diff_ids for {layers} layers; must be equal and at most {LAYER_COUNT_MAX}"
            );
            return Err(rule(&what, text));
        }
        let layers = blobs.into_iter().zip(diff_ids).map(|(blob, diff_id)| {
            let diff_id = diff_id.parse();
            let diff_id = diff_id.map_err(|error| rule(&what, format!("diff_id: {error}")))?;
            Ok(Layer { blob, diff_id })
        });
        let layers = layers.collect::<Result<_, OciError>>()?;
        Ok(Image { digest, run: parsed.config.unwrap_or_default(), layers })
    }

    /// The configuration has the last word on what an image is for.
    fn check_platform(&self, config: &ImageConfig) -> Result<(), OciError> {
        let wanted = &self.options.platform;
        let differs = |found: &Option<String>, wanted: &str| {
            found.as_ref().is_some_and(|found| !found.is_empty() && found != wanted)
        };
        if differs(&config.os, &wanted.os) || differs(&config.architecture, &wanted.architecture) {
            let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "any".to_owned());
            let available = format!("{}/{}", part(&config.os), part(&config.architecture));
            return Err(OciError::Platform { wanted: wanted.to_string(), available });
        }
        Ok(())
    }

    fn json(&self, blob: &Blob, is_manifest: bool) -> Result<Vec<u8>, OciError> {
        if let Blob::Digest(_, Some(size)) = blob
            && *size > JSON_SIZE_MAX
        {
            return Err(too_large(&blob.to_string(), *size));
        }
        let region = if is_manifest {
            self.source.open_manifest(blob, self.spool, self.progress)?
        } else {
            self.source.open(blob, self.spool, self.progress)?
        };
        read_json(&blob.to_string(), &region)
    }
}

/// Reads a JSON blob into memory, within [`JSON_SIZE_MAX`].
///
/// # Errors
/// [`OciError::Rule`] if it is larger, [`OciError::Io`].
pub fn read_json(what: &str, region: &Region) -> Result<Vec<u8>, OciError> {
    let size = usize::try_from(region.size()).ok().filter(|_| region.size() <= JSON_SIZE_MAX);
    let size = size.ok_or_else(|| too_large(what, region.size()))?;
    let mut json = vec![0; size];
    match read_exact_at(region, &mut json, 0) {
        Ok(true) => Ok(json),
        Ok(false) => Err(rule(what, "shorter than it was")),
        Err(source) => Err(OciError::Io { what: what.to_owned(), source }),
    }
}

/// Picks the descriptor with this name and platform.
fn choose<'a>(
    what: &str,
    manifests: &'a [Descriptor],
    name: Option<&str>,
    platform: &Platform,
) -> Result<&'a Descriptor, OciError> {
    let annotation = |descriptor: &'a Descriptor, key: &str| {
        descriptor.annotations().as_ref().and_then(|annotations| annotations.get(key))
    };
    let named = |descriptor: &&'a Descriptor| {
        let names = [REFERENCE_NAME, CONTAINERD_NAME].map(|key| annotation(descriptor, key));
        name.is_none_or(|name| names.into_iter().flatten().any(|found| is_named(found, name)))
    };
    // Builders put attestations beside images; they are no images.
    let images = manifests.iter().filter(|d| annotation(d, REFERENCE_TYPE).is_none());
    let candidates: Vec<&Descriptor> = images.filter(named).collect();
    let fits = |descriptor: &&&Descriptor| match descriptor.platform() {
        Some(found) => {
            found.os().to_string() == platform.os
                && found.architecture().to_string() == platform.architecture
                && platform
                    .variant
                    .as_ref()
                    .is_none_or(|wanted| found.variant().as_ref() == Some(wanted))
        }
        None => true,
    };
    let mut fitting: Vec<&Descriptor> = candidates.iter().filter(fits).copied().collect();
    fitting.dedup_by_key(|descriptor| descriptor.digest());
    let several_names = || {
        let names = fitting.iter().filter_map(|descriptor| annotation(descriptor, REFERENCE_NAME));
        names.map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    match fitting.as_slice() {
        [] if candidates.is_empty() && name.is_some() => {
            Err(rule(what, format!("no image named {:?}", name.unwrap_or_default())))
        }
        [] => Err(OciError::Platform {
            wanted: platform.to_string(),
            available: available(&candidates),
        }),
        [one] => Ok(one),
        // An index that offers several variants of one platform lists the preferred one first.
        [first, ..] if first.platform().is_some() && several_names().is_empty() => Ok(first),
        _ => {
            Err(rule(what, format!("choose one of several images by --image: {}", several_names())))
        }
    }
}

fn available(candidates: &[&Descriptor]) -> String {
    let platform = |descriptor: &&Descriptor| {
        let platform = descriptor.platform().as_ref()?;
        Some(format!("{}/{}", platform.os(), platform.architecture()))
    };
    candidates.iter().filter_map(platform).collect::<Vec<_>>().join(", ")
}

/// Whether a full name or tag is meant by `name`: all of it, or its end behind a `/` or `:`.
fn is_named(full: &str, name: &str) -> bool {
    let Some(front) = full.strip_suffix(name) else { return false };
    front.is_empty() || front.ends_with(['/', ':'])
}

fn tags(entries: &[DockerEntry]) -> String {
    let tags = entries.iter().flat_map(|entry| entry.repo_tags.iter().flatten());
    format!("there are: {}", tags.map(String::as_str).collect::<Vec<_>>().join(", "))
}

fn parse<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(json).map_err(|source| OciError::Json { what: what.to_owned(), source })
}

fn too_large(what: &str, size: u64) -> OciError {
    rule(what, format!("{size} bytes of JSON, at most {JSON_SIZE_MAX} are allowed"))
}

/// An [`OciError::Rule`].
pub(super) fn rule(what: &str, rule: impl Into<String>) -> OciError {
    OciError::Rule { what: what.to_owned(), rule: rule.into() }
}

impl Blob {
    /// The blob that a descriptor names.
    ///
    /// # Errors
    /// [`OciError::Rule`] for a digest that we can't check.
    pub fn from_descriptor(descriptor: &Descriptor) -> Result<Self, OciError> {
        let text = descriptor.digest().to_string();
        let digest = text.parse().map_err(|error| rule(&text, format!("{error}")))?;
        Ok(Self::Digest(digest, Some(descriptor.size())))
    }

    /// Its digest, if the image names it by that.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Digest(digest, _) => Some(digest),
            Self::Member(_) => None,
        }
    }

    /// Its size, if the image tells.
    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        match self {
            Self::Digest(_, size) => *size,
            Self::Member(_) => None,
        }
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest, _) => digest.fmt(f),
            Self::Member(path) => path.fmt(f),
        }
    }
}
