//! Images made for tests: layers from members, blobs, and the three shapes in which they lie on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use flist::oci::digest::{Algorithm, Digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// A layer's archive in the making.
pub(crate) struct Layer {
    builder: Builder<Vec<u8>>,
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }

    /// Pax records for the next member.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.builder.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, contents: &[u8]) -> Self {
        self.member(EntryType::Regular, path, 0o644, contents, |_| {})
    }

    pub(crate) fn directory(self, path: &str, mode: u32) -> Self {
        self.member(EntryType::Directory, path, mode, b"", |_| {})
    }

    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    pub(crate) fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(EntryType::Link, 0o644, 0);
        raw_name(&mut header, path);
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.builder.append(&header, &b""[..]).unwrap();
        self
    }

    pub(crate) fn device(self, path: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        self.member(kind, path, 0o620, b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    /// Any member; names longer than the header's field get a GNU long name.
    pub(crate) fn member(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        contents: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = header(kind, mode, contents.len() as u64);
        change(&mut header);
        if path.len() < 100 {
            // The builder refuses the names that some tests are about.
            raw_name(&mut header, path);
            header.set_cksum();
            self.builder.append(&header, contents).unwrap();
        } else {
            self.builder.append_data(&mut header, path, contents).unwrap();
        }
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_600_000_000);
    header.set_size(size);
    header
}

fn raw_name(header: &mut Header, path: &str) {
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
}

/// How a layer's blob is compressed.
#[derive(Clone, Copy)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// An image: its blobs by digest, and what names them.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) layers: Vec<String>,
    pub(crate) config: Value,
    media_types: Vec<&'static str>,
}

impl Image {
    /// An image with this `config` part in its configuration.
    pub(crate) fn new(run: Value) -> Self {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": run,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        Self { blobs: BTreeMap::new(), layers: Vec::new(), config, media_types: Vec::new() }
    }

    pub(crate) fn layer(mut self, archive: &[u8], compression: Compression) -> Self {
        let (blob, media_type) = match compression {
            Compression::Plain => (archive.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
            Compression::Gzip => (gzip(archive), "application/vnd.oci.image.layer.v1.tar+gzip"),
            Compression::Zstd => {
                let blob = zstd::stream::encode_all(archive, 0).unwrap();
                (blob, "application/vnd.oci.image.layer.v1.tar+zstd")
            }
        };
        let diff_ids = self.config.pointer_mut("/rootfs/diff_ids").unwrap();
        diff_ids.as_array_mut().unwrap().push(json!(sha256(archive)));
        let digest = self.add(blob);
        self.layers.push(digest);
        self.media_types.push(media_type);
        self
    }

    /// Keeps a blob; returns its digest.
    pub(crate) fn add(&mut self, blob: Vec<u8>) -> String {
        let digest = sha256(&blob);
        self.blobs.insert(digest.clone(), blob);
        digest
    }

    /// Adds configuration and manifest; returns the manifest's descriptor.
    pub(crate) fn seal(&mut self) -> Value {
        let config = self.config.to_string().into_bytes();
        let config = self.descriptor("application/vnd.oci.image.config.v1+json", config);
        let layers = self.layers.iter().zip(&self.media_types);
        let layers: Vec<Value> = layers
            .map(|(digest, media_type)| {
                json!({"mediaType": media_type, "digest": digest, "size": self.blobs[digest].len()})
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        self.descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    }

    /// Keeps a blob; returns its descriptor.
    pub(crate) fn descriptor(&mut self, media_type: &str, blob: Vec<u8>) -> Value {
        let size = blob.len();
        json!({"mediaType": media_type, "digest": self.add(blob), "size": size})
    }

    /// Writes an OCI layout whose index has these manifests.
    pub(crate) fn write_layout(&self, folder: &Path, manifests: &[Value]) {
        for (path, bytes) in self.layout_files(manifests) {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// Writes the same as a tar.
    pub(crate) fn write_layout_tar(&self, path: &Path, manifests: &[Value]) {
        let files = self.layout_files(manifests);
        fs::write(path, tar_of(&files)).unwrap();
    }

    /// Writes what `docker save` writes, in its old form; the second of equal layers is a link.
    pub(crate) fn write_docker_save(&self, path: &Path, tags: &[&str]) {
        let config = self.config.to_string().into_bytes();
        let config_name = format!("{}.json", sha256(&config).strip_prefix("sha256:").unwrap());
        let mut names: Vec<String> = Vec::new();
        let mut builder = Builder::new(Vec::new());
        for (position, digest) in self.layers.iter().enumerate() {
            let name = format!("{position}/layer.tar");
            if let Some(first) = self.layers.iter().position(|other| other == digest)
                && first < position
            {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                builder.append_link(&mut header, &name, format!("../{first}/layer.tar")).unwrap();
            } else {
                append(&mut builder, &name, &self.blobs[digest]);
            }
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
        append(&mut builder, &config_name, &config);
        append(&mut builder, "manifest.json", manifest.to_string().as_bytes());
        fs::write(path, gzip(&builder.into_inner().unwrap())).unwrap();
    }

    fn layout_files(&self, manifests: &[Value]) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        let blobs = self.blobs.iter();
        let mut files: Vec<_> = blobs
            .map(|(digest, blob)| (format!("blobs/{}", digest.replace(':', "/")), blob.clone()))
            .collect();
        files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files.push(("index.json".into(), index.to_string().into_bytes()));
        files
    }
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, bytes) in files {
        append(&mut builder, path, bytes);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
    builder.append_data(&mut header, path, bytes).unwrap();
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).to_string()
}
