//! The workspace as `tidy` sees it: crates, their manifests, and every Rust file parsed once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// All crates of the workspace.
pub(crate) struct Workspace {
    /// Top of the repository.
    pub(crate) root: PathBuf,
    /// Members in the order of the manifest.
    pub(crate) crates: Vec<Crate>,
}

/// One member.
pub(crate) struct Crate {
    /// Name in its manifest.
    pub(crate) name: String,
    /// Its folder, relative to the root.
    pub(crate) folder: PathBuf,
    /// Names in `[dependencies]`, without those for tests and builds.
    pub(crate) dependencies: BTreeSet<String>,
    /// Every Rust file in its folder.
    pub(crate) files: Vec<SourceFile>,
}

/// One Rust file.
pub(crate) struct SourceFile {
    /// Relative to the root.
    pub(crate) path: PathBuf,
    /// Its text.
    pub(crate) text: String,
    /// Its syntax.
    pub(crate) syntax: syn::File,
}

impl Workspace {
    /// Reads all members listed in the root manifest.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let manifest = read_manifest(root)?;
        let members =
            manifest["workspace"]["members"].as_array().context("no workspace.members")?;
        let crates = members
            .iter()
            .map(|member| Crate::read(root, member.as_str().context("a member is no string")?))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { root: root.to_owned(), crates })
    }
}

impl Crate {
    fn read(root: &Path, folder: &str) -> anyhow::Result<Self> {
        let manifest = read_manifest(&root.join(folder))?;
        let name = manifest["package"]["name"].as_str().context("no package.name")?.to_owned();
        let dependencies = manifest.get("dependencies").and_then(|value| value.as_table());
        let dependencies = dependencies.map(|table| table.keys().cloned().collect());
        let files = rust_files(&root.join(folder))?
            .into_iter()
            .map(|path| SourceFile::read(root, &path))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            name,
            folder: folder.into(),
            dependencies: dependencies.unwrap_or_default(),
            files,
        })
    }
}

impl SourceFile {
    fn read(root: &Path, path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(path.strip_prefix(root)?, text)
    }

    /// A file with this text; `path` is relative to the root.
    pub(crate) fn parse(path: &Path, text: String) -> anyhow::Result<Self> {
        let syntax = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), text, syntax })
    }
}

/// Rust files below `folder`, build products left out.
fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read_manifest(folder: &Path) -> anyhow::Result<toml::Table> {
    let path = folder.join("Cargo.toml");
    if !path.is_file() {
        bail!("{}: listed as a member, but there is no Cargo.toml", folder.display());
    }
    let text = fs::read_to_string(&path)?;
    text.parse().with_context(|| path.display().to_string())
}

/// Small workspaces for the tests of the rules.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A crate in `folder` with these files (paths inside it, and texts) and dependencies.
    pub(crate) fn member(folder: &str, files: &[(&str, &str)], dependencies: &[&str]) -> Crate {
        let parse = |(path, text): &(&str, &str)| {
            SourceFile::parse(&Path::new(folder).join(path), (*text).to_owned()).unwrap()
        };
        Crate {
            name: folder.replace('/', "-"),
            folder: folder.into(),
            dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
            files: files.iter().map(parse).collect(),
        }
    }

    /// A workspace of these crates, without a root on the disk.
    pub(crate) fn workspace(crates: Vec<Crate>) -> Workspace {
        Workspace { root: PathBuf::new(), crates }
    }
}
