//! Debian's kernel packages, fetched by apt and unpacked into the cache.
//!
//! The steps, each idempotent: ask apt which package the flavour's metapackage stands for
//! today; if the cache has that version, done; else, alone under a lock, download it, unpack
//! it, index its modules, and move the folder to its final name. Authenticity is apt's
//! (signed package lists, hashes); this module trusts what `apt-get download` accepted.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use thiserror::Error;

use crate::cache::{Cache, CacheError, partial_name, write_whole};
use crate::modules::{ModuleError, ModuleTree, write_indexes};
use crate::vmlinux::{self, VmlinuxError};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// For virtual machines: fewer drivers, half the CPU time to boot. Guests use it.
    Cloud,
    /// With the drivers of real machines. Nodes use it.
    Full,
}

impl Flavour {
    /// The metapackage that depends on the newest kernel of this flavour.
    #[must_use]
    pub fn metapackage(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Full => "linux-image-amd64",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Full => "full",
        })
    }
}

impl FromStr for Flavour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cloud" => Ok(Self::Cloud),
            "full" => Ok(Self::Full),
            other => Err(format!("no flavour {other:?}: cloud or full")),
        }
    }
}

/// A kernel package that lies unpacked in the cache.
#[derive(Debug, Clone)]
pub struct KernelPackage {
    package: String,
    version: String,
    release: String,
    root: PathBuf,
    cache: Cache,
}

impl KernelPackage {
    /// The newest kernel of a flavour, downloaded if the cache lacks it.
    ///
    /// # Errors
    ///
    /// [`FetchError`], naming the package and the command that failed.
    pub fn fetch(flavour: Flavour, cache: &Cache) -> Result<Self, FetchError> {
        let (package, version) = resolve_cached(flavour, cache)?;
        let root = cache.folder("kernels")?.join(format!("{package}_{version}"));
        let _lock = cache.lock(&package)?;
        if !root.is_dir() {
            download(&package, &version, &root)?;
        }
        let release = only_entry(&root.join("lib/modules"))?;
        Ok(Self { package, version, release, root, cache: cache.clone() })
    }

    /// The package's name, like `linux-image-6.1.0-56-cloud-amd64`.
    #[must_use]
    pub fn package(&self) -> &str {
        &self.package
    }

    /// The package's version, like `6.1.192-2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What `uname -r` says in this kernel, like `6.1.0-56-cloud-amd64`.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The compressed kernel (`bzImage`), which a boot loader and `qemu -kernel` take.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The folder `lib/modules/<release>`.
    #[must_use]
    pub fn modules_dir(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The modules, ready to be asked for a load order.
    ///
    /// # Errors
    ///
    /// [`ModuleError`] when the cache's indexes can't be read.
    pub fn modules(&self) -> Result<ModuleTree, ModuleError> {
        ModuleTree::open(&self.modules_dir())
    }

    /// The uncompressed ELF kernel, extracted at the first call and kept in the cache.
    ///
    /// # Errors
    ///
    /// [`FetchError::Vmlinux`] when the image can't be taken apart.
    pub fn vmlinux(&self) -> Result<PathBuf, FetchError> {
        let path = self.root.join("boot").join(format!("vmlinux-{}", self.release));
        let _lock = self.cache.lock(&self.package)?;
        if !path.is_file() {
            let vmlinuz = self.vmlinuz();
            let image = fs::read(&vmlinuz).map_err(FetchError::io("read", &vmlinuz))?;
            let vmlinux = vmlinux::extract(&image)
                .map_err(|source| FetchError::Vmlinux { path: vmlinuz, source })?;
            write_whole(&path, &vmlinux)?;
        }
        Ok(path)
    }
}

/// As [`resolve`], without asking apt again while its lists are the same: it takes a second.
///
/// The answer is kept in a file, which is good while it is younger than apt's lists.
fn resolve_cached(flavour: Flavour, cache: &Cache) -> Result<(String, String), FetchError> {
    let path = cache.folder("kernels")?.join(format!("{flavour}.newest"));
    let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    if modified(&path).zip(modified(Path::new(APT_LISTS))).is_some_and(|(kept, lists)| kept > lists)
        && let Some(kept) = fs::read_to_string(&path).ok().as_deref().and_then(parse_kept)
    {
        return Ok(kept);
    }
    let (package, version) = resolve(flavour)?;
    write_whole(&path, format!("{package} {version}\n").as_bytes())?;
    Ok((package, version))
}

/// Where apt keeps its package lists; `apt-get update` changes the folder.
const APT_LISTS: &str = "/var/lib/apt/lists";

/// A package and its version, one space between them.
fn parse_kept(text: &str) -> Option<(String, String)> {
    let (package, version) = text.trim_end().split_once(' ')?;
    let is_good = is_plain_name(package) && is_plain_name(version);
    is_good.then(|| (package.to_owned(), version.to_owned()))
}

/// The package that the metapackage depends on, and its version.
fn resolve(flavour: Flavour) -> Result<(String, String), FetchError> {
    let meta = flavour.metapackage();
    let record = apt_show(meta)?;
    let package = record.split_once("\nDepends: ").and_then(|(_, rest)| {
        let depends = rest.lines().next().unwrap_or_default();
        let mut names = depends.split(',').filter_map(|item| item.split_whitespace().next());
        names.find(|name| name.starts_with("linux-image-")).map(str::to_owned)
    });
    let package = package.ok_or_else(|| FetchError::NoDependency { package: meta.to_owned() })?;
    let record = apt_show(&package)?;
    let version = record.lines().find_map(|line| line.strip_prefix("Version: "));
    let version = version.filter(|version| is_plain_name(version) && is_plain_name(&package));
    let version = version.ok_or_else(|| FetchError::NoVersion { package: package.clone() })?;
    Ok((package, version.to_owned()))
}

/// Whether apt's answer may become a file name: Debian policy 5.6.1 and 5.6.12 allow no more.
fn is_plain_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.~:".contains(&byte);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(is_plain)
}

fn apt_show(package: &str) -> Result<String, FetchError> {
    let mut command = Command::new("apt-cache");
    command.args(["show", "--no-all-versions", package]);
    run(&mut command, package)
}

/// Downloads and unpacks into a temporary folder, which then becomes `root`.
fn download(package: &str, version: &str, root: &Path) -> Result<(), FetchError> {
    remove_partial(root)?;
    let partial = partial_name(root);
    let tree = partial.join("tree");
    fs::create_dir_all(&tree).map_err(FetchError::io("create folder", &tree))?;
    let result = download_to(package, version, &partial, &tree)
        .and_then(|()| fs::rename(&tree, root).map_err(FetchError::io("rename to", root)));
    let _ = fs::remove_dir_all(&partial);
    result
}

fn download_to(package: &str, version: &str, dir: &Path, tree: &Path) -> Result<(), FetchError> {
    let mut apt = Command::new("apt-get");
    apt.current_dir(dir)
        .args(["-q", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30"])
        .args(["-o", "Acquire::https::Timeout=30", "download"])
        .arg(format!("{package}={version}"));
    run(&mut apt, package)?;
    let files = fs::read_dir(dir).map_err(FetchError::io("read folder", dir))?;
    let mut paths = files.filter_map(Result::ok).map(|entry| entry.path());
    let deb = paths.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.ok_or_else(|| FetchError::NoDeb { package: package.to_owned() })?;
    unpack(&deb, package, tree)?;
    let modules = tree.join("lib/modules");
    write_indexes(&modules.join(only_entry(&modules)?))?;
    Ok(())
}

fn unpack(deb: &Path, package: &str, tree: &Path) -> Result<(), FetchError> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(deb).arg(tree);
    run(&mut command, package).map(|_| ())
}

/// Removes what an earlier, killed download of the same package left. The lock is held.
fn remove_partial(root: &Path) -> Result<(), FetchError> {
    let folder = root.parent().unwrap_or(root);
    let prefix = format!(".partial-{}-", root.file_name().unwrap_or_default().to_string_lossy());
    let entries = fs::read_dir(folder).map_err(FetchError::io("read folder", folder))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            fs::remove_dir_all(&path).map_err(FetchError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The name of the one entry of a folder.
fn only_entry(folder: &Path) -> Result<String, FetchError> {
    let entries = fs::read_dir(folder).map_err(FetchError::io("read folder", folder))?;
    let names: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.file_name()).collect();
    match names.as_slice() {
        [name] => Ok(name.to_string_lossy().into_owned()),
        names => Err(FetchError::Layout { path: folder.to_path_buf(), count: names.len() }),
    }
}

/// Runs a command to its end and returns its standard output.
fn run(command: &mut Command, package: &str) -> Result<String, FetchError> {
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
    let text = format!("{command:?}");
    let failed =
        |reason| FetchError::Command { package: package.to_owned(), command: text.clone(), reason };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, stderr.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A kernel can't be had.
#[derive(Debug, Error)]
pub enum FetchError {
    /// A program failed or isn't there.
    #[error("package {package}: {command} failed: {reason}")]
    Command {
        /// The package in question.
        package: String,
        /// The command line.
        command: String,
        /// Its status and standard error.
        reason: String,
    },
    /// The metapackage depends on no kernel.
    #[error("package {package} depends on no linux-image package")]
    NoDependency {
        /// The metapackage.
        package: String,
    },
    /// apt's record has no version, or one that can't be.
    #[error("package {package} has no usable version in apt's lists")]
    NoVersion {
        /// The package.
        package: String,
    },
    /// apt said that it succeeded.
    #[error("package {package}: apt-get download left no .deb file")]
    NoDeb {
        /// The package.
        package: String,
    },
    /// The package isn't laid out like a kernel package.
    #[error("{} has {count} entries instead of one", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What it has.
        count: usize,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel can't be taken out of its image.
    #[error("{}", path.display())]
    Vmlinux {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: VmlinuxError,
    },
    /// The modules can't be indexed.
    #[error("modules")]
    Module(#[from] ModuleError),
    /// The cache can't be used.
    #[error("cache")]
    Cache(#[from] CacheError),
}

impl FetchError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Command { command, .. } if command.contains("apt") => {
                Some("run `apt-get update` as root, and check the network")
            }
            Self::Command { .. } | Self::NoDeb { .. } => Some("is the package dpkg installed?"),
            Self::Vmlinux { .. } | Self::Layout { .. } => {
                Some("delete the folder `kernels` in the cache and try again")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_have_names() {
        for flavour in [Flavour::Cloud, Flavour::Full] {
            assert_eq!(flavour.to_string().parse(), Ok(flavour));
        }
        assert!("amd64".parse::<Flavour>().is_err());
    }

    #[test]
    fn names_from_apt_stay_within_the_folder() {
        assert!(is_plain_name("linux-image-6.1.0-56-cloud-amd64"));
        assert!(is_plain_name("1:6.1.192-2+deb12u1~bpo"));
        for name in ["", "..", ".x", "a/b", "a b", "a\n"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_kept_answer_is_read_back_or_not_at_all() {
        let good = Some(("linux-image-6.1".to_owned(), "6.1.192-2".to_owned()));
        assert_eq!(parse_kept("linux-image-6.1 6.1.192-2\n"), good);
        for text in ["", "linux-image-6.1", "../x 1", "linux-image-6.1 6.1 x"] {
            assert_eq!(parse_kept(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_damaged_package_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("linux-image-x.deb");
        for bytes in [&b"!<arch>\ndebian-binary   0  0 0 100644 4  `\n2.0\n"[..], b"", b"garbage"] {
            fs::write(&deb, bytes).unwrap();
            let error = unpack(&deb, "linux-image-x", &dir.path().join("tree")).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("linux-image-x") && text.contains("dpkg-deb"), "{text}");
        }
    }

    #[test]
    fn leftovers_of_a_killed_download_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".partial-linux_1-77-0")).unwrap();
        fs::create_dir(dir.path().join(".partial-other_1-77-0")).unwrap();
        remove_partial(&dir.path().join("linux_1")).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [dir.path().join(".partial-other_1-77-0")]);
    }
}
