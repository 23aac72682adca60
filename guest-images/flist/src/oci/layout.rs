//! Images on disk: OCI layouts as directory or tar (OCI image spec, "Image Layout"), and the tars
//! that `docker save` writes.
//!
//! Newer `docker save` tars are both at once; the OCI side is taken then, since it has a digest for
//! every blob. A tar may be compressed as a whole. Blobs inside a tar are read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::OciError;
use super::manifest::{Blob, Root, Source, read_json, rule};
use super::region::{ReadAt, Region};
use super::spool::{Spool, verify};
use super::tar::{Archive, Kind, TarError};
use crate::progress::Progress;
use crate::tree::printable;

/// Most members of an image's tar.
pub const MEMBER_COUNT_MAX: usize = 1 << 16;
/// Most links from one member of a tar to the next; old `docker save` shares equal layers by links.
pub const LINK_COUNT_MAX: usize = 8;

const OCI_LAYOUT: &str = "oci-layout";
const OCI_INDEX: &str = "index.json";
const DOCKER_MANIFEST: &str = "manifest.json";

/// Opens an image on disk. `image` is the name that was asked for, if any: a docker-save tar knows
/// its images' full names only in `docker save`'s own manifest.
///
/// # Errors
/// [`OciError::Rule`] if it is neither an OCI layout nor the output of `docker save`.
pub fn open(
    path: &Path,
    image: Option<&str>,
    spool: &mut Spool,
    progress: &dyn Progress,
) -> Result<Box<dyn Source>, OciError> {
    let what = path.display().to_string();
    let io_error = |source| OciError::Io { what: what.clone(), source };
    if path.is_dir() {
        if !path.join(OCI_LAYOUT).is_file() {
            let text = "not an image: the directory has no file \"oci-layout\"";
            return Err(rule(&what, text));
        }
        return Ok(Box::new(Directory { path: path.to_owned() }));
    }
    let file = File::open(path).map_err(io_error)?;
    let region = Region::whole(file).map_err(io_error)?;
    let region = spool.decompress(&region, &what, None, progress)?;
    let members = Members::list(&region).map_err(|error| match error {
        TarError::Read(source) => OciError::Io { what: what.clone(), source },
        error => rule(&what, format!("neither a directory nor an image's tar: {error}")),
    })?;
    let is_oci = members.find(OCI_LAYOUT).is_some() && members.find(OCI_INDEX).is_some();
    let is_docker = members.find(DOCKER_MANIFEST).is_some();
    if !is_oci && !is_docker {
        let text = "not an image: the tar has neither \"oci-layout\" nor \"manifest.json\"";
        return Err(rule(&what, text));
    }
    let prefers_docker = is_docker && (!is_oci || image.is_some());
    Ok(Box::new(Tar { region, members, is_docker: prefers_docker }))
}

/// An OCI layout in a directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn file(&self, path: &Path, what: &str) -> Result<Region, OciError> {
        let region = File::open(self.path.join(path)).and_then(|file| {
            if file.metadata()?.is_file() {
                Region::whole(file)
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        });
        region.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => OciError::Missing { what: what.to_owned() },
            _ => OciError::Io { what: what.to_owned(), source },
        })
    }
}

impl Source for Directory {
    fn root(&self, _spool: &Spool, _progress: &dyn Progress) -> Result<Root, OciError> {
        let json = read_json(OCI_INDEX, &self.file(Path::new(OCI_INDEX), OCI_INDEX)?)?;
        Ok(Root::Oci { what: OCI_INDEX.to_owned(), json, is_image: false })
    }

    fn open(
        &self,
        blob: &Blob,
        _spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        let what = blob.to_string();
        let Some(digest) = blob.digest() else { return Err(OciError::Missing { what }) };
        let path = Path::new("blobs").join(digest.algorithm().name()).join(digest.hex());
        let region = self.file(&path, &what)?;
        check(&region, blob, progress)?;
        Ok(region)
    }
}

/// An OCI layout or the output of `docker save` in a tar.
#[derive(Debug)]
struct Tar {
    region: Region,
    members: Members,
    is_docker: bool,
}

impl Tar {
    fn member(&self, path: &str) -> Result<Region, OciError> {
        let found = self.members.find(path);
        let region = found.and_then(|(offset, size)| self.region.part(offset, size));
        region.ok_or_else(|| OciError::Missing { what: path.to_owned() })
    }
}

impl Source for Tar {
    fn root(&self, _spool: &Spool, _progress: &dyn Progress) -> Result<Root, OciError> {
        if self.is_docker {
            return read_json(DOCKER_MANIFEST, &self.member(DOCKER_MANIFEST)?).map(Root::Docker);
        }
        let json = read_json(OCI_INDEX, &self.member(OCI_INDEX)?)?;
        Ok(Root::Oci { what: OCI_INDEX.to_owned(), json, is_image: false })
    }

    fn open(
        &self,
        blob: &Blob,
        _spool: &Spool,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        let path = match blob {
            Blob::Digest(digest, _) => {
                format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
            }
            Blob::Member(path) => path.clone(),
        };
        let found = self.member(&path);
        let region = found.map_err(|_| OciError::Missing { what: blob.to_string() })?;
        check(&region, &digest_in_path(blob), progress)?;
        Ok(region)
    }
}

/// Members of a `docker save` tar are often named by digest: `blobs/sha256/HEX`, or `HEX.json` for
/// the configuration. A name that makes such a promise is held to it.
fn digest_in_path(blob: &Blob) -> Blob {
    let Blob::Member(path) = blob else { return blob.clone() };
    let hex = path.strip_prefix("blobs/sha256/").or_else(|| path.strip_suffix(".json"));
    let digest = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
    digest.map_or_else(|| blob.clone(), |digest| Blob::Digest(digest, None))
}

fn check(region: &Region, blob: &Blob, progress: &dyn Progress) -> Result<(), OciError> {
    let what = blob.to_string();
    if let Some(expected) = blob.size()
        && expected != region.size()
    {
        return Err(OciError::Size { what, expected, found: region.size() });
    }
    blob.digest().map_or(Ok(()), |digest| verify(region, &what, digest, progress))
}

/// Where the members of a tar are.
#[derive(Debug, Default)]
struct Members {
    by_path: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    /// Offset and size in bytes.
    File(u64, u64),
    /// The path of another member.
    Link(String),
}

impl Members {
    fn list(region: &Region) -> Result<Self, TarError> {
        let mut members = Self::default();
        let mut archive = Archive::new(region);
        while let Some(member) = archive.next()? {
            let Some(path) = normal(&printable(&member.name)) else { continue };
            let entry = match member.kind {
                Kind::File(data) => match data.extents.as_slice() {
                    [] => Member::File(0, 0),
                    [whole] if whole.size == data.size => Member::File(whole.offset, whole.size),
                    _ => continue,
                },
                Kind::HardLink(target) => match normal(&printable(&target)) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                Kind::Symlink(target) => {
                    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                    match normal(&format!("{directory}/{}", printable(&target))) {
                        Some(target) => Member::Link(target),
                        None => continue,
                    }
                }
                _ => continue,
            };
            members.by_path.insert(path, entry);
            if members.by_path.len() > MEMBER_COUNT_MAX {
                let rule = "more than 65536 members in an image's tar".to_owned();
                return Err(TarError::Member { offset: 0, name: String::new(), rule });
            }
        }
        Ok(members)
    }

    /// Offset and size of a file.
    fn find(&self, path: &str) -> Option<(u64, u64)> {
        let mut path = normal(path)?;
        for _ in 0..=LINK_COUNT_MAX {
            match self.by_path.get(&path)? {
                Member::File(offset, size) => return Some((*offset, *size)),
                Member::Link(target) => path.clone_from(target),
            }
        }
        None
    }
}

/// A path without `.`, `..` and empty components; none if it leads outside.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_inside_a_tar_stay_inside() {
        assert_eq!(normal("./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(normal("layer/../../x"), None);
        let member = |hex: &str| digest_in_path(&Blob::Member(format!("blobs/sha256/{hex}")));
        assert!(member(&"a".repeat(64)).digest().is_some());
        assert!(member("../../x").digest().is_none());
    }

    #[test]
    fn a_cycle_of_links_finds_nothing() {
        let mut members = Members::default();
        members.by_path.insert("a".into(), Member::Link("b".into()));
        members.by_path.insert("b".into(), Member::Link("a".into()));
        assert_eq!(members.find("a"), None);
    }
}
