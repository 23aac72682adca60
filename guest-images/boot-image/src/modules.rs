//! Which modules a module needs, and in which order to load them.
//!
//! [`ModuleTree`] reads the plain-text indexes that `depmod` would leave in a module folder:
//! `modules.dep`, `modules.builtin`, `modules.softdep`, `modules.alias`. [`write_indexes`]
//! makes the ones that a Debian package lacks, in `depmod`'s formats (depmod(8), modules.dep(5)),
//! so that a tree unpacked by us serves anyone who expects an installed one.
//!
//! Names follow the kernel's habit: `-` and `_` are the same, `.ko` is left out. What is built
//! into the kernel is fine to ask for and adds nothing to the order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cache::{CacheError, write_whole};
use crate::decompress::{DecompressError, decompress};
use crate::modinfo::{ModInfo, ModInfoError};

/// The modules of one kernel release.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    root: PathBuf,
    /// By name: the file, relative to the root, and the names it depends on.
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    /// By name: names or aliases to be loaded before it, where they exist.
    soft_before: BTreeMap<String, Vec<String>>,
    /// By alias without wildcard: names.
    aliases: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone)]
struct Module {
    file: String,
    depends: Vec<String>,
}

/// One module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadStep {
    /// The module's file.
    pub path: PathBuf,
    /// Its parameters, as `finit_module(2)` takes them; empty for a mere dependency.
    pub params: String,
}

impl ModuleTree {
    /// Reads the indexes in `root`, usually `lib/modules/<release>`.
    ///
    /// # Errors
    ///
    /// [`ModuleError::Io`] when `modules.dep` or `modules.builtin` can't be read; the other
    /// indexes may be absent.
    pub fn open(root: &Path) -> Result<Self, ModuleError> {
        let read = |name| read_text(&root.join(name));
        let optional = |name| read(name).unwrap_or_default();
        Ok(Self {
            root: root.to_path_buf(),
            modules: parse_dep(&read("modules.dep")?),
            builtin: read("modules.builtin")?.lines().map(module_name).collect(),
            soft_before: parse_softdep(&optional("modules.softdep")),
            aliases: parse_alias(&optional("modules.alias")),
        })
    }

    /// The folder it was read from.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the kernel itself contains the module.
    #[must_use]
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&module_name(name))
    }

    /// The files to load for all of `wanted`, each after what it needs, none twice.
    ///
    /// A wanted module may carry parameters: `"kvm_amd nested=1"`.
    ///
    /// # Errors
    ///
    /// [`ModuleError::Unknown`] for a name that is neither a module nor built in,
    /// [`ModuleError::Cycle`] when the index isn't a graph one can load.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<LoadStep>, ModuleError> {
        let mut walk = Walk { tree: self, open: BTreeSet::new(), done: Vec::new() };
        for request in wanted {
            let (name, params) = request.split_once(' ').unwrap_or((request, ""));
            let name = module_name(name);
            walk.visit(&name, &name)?;
            if let Some(step) = walk.done.iter_mut().find(|(done, _)| *done == name) {
                step.1.params = params.trim().to_owned();
            }
        }
        Ok(walk.done.into_iter().map(|(_, step)| step).collect())
    }

    /// The modules that `name` stands for in a soft dependency: itself, or those that offer
    /// the service by a generic implementation, which loads on every CPU.
    fn soft_targets<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        if self.modules.contains_key(name) {
            return vec![name];
        }
        let offered = self.aliases.get(name).map(Vec::as_slice).unwrap_or_default();
        offered.iter().map(String::as_str).filter(|name| name.ends_with("_generic")).collect()
    }
}

/// A depth-first walk: a module is done after everything below it.
struct Walk<'a> {
    tree: &'a ModuleTree,
    open: BTreeSet<String>,
    done: Vec<(String, LoadStep)>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, wanted: &str) -> Result<(), ModuleError> {
        let tree = self.tree;
        if tree.builtin.contains(name) || self.done.iter().any(|(done, _)| done == name) {
            return Ok(());
        }
        let module = tree.modules.get(name).ok_or_else(|| ModuleError::Unknown {
            name: name.to_owned(),
            wanted: wanted.to_owned(),
            root: tree.root.clone(),
        })?;
        if !self.open.insert(name.to_owned()) {
            return Err(ModuleError::Cycle { name: name.to_owned() });
        }
        for soft in tree.soft_before.get(name).into_iter().flatten() {
            for target in tree.soft_targets(soft) {
                if !self.open.contains(target) {
                    self.visit(target, wanted)?;
                }
            }
        }
        for need in &module.depends {
            self.visit(need, wanted)?;
        }
        self.open.remove(name);
        let step = LoadStep { path: tree.root.join(&module.file), params: String::new() };
        self.done.push((name.to_owned(), step));
        Ok(())
    }
}

/// Makes `modules.dep`, `modules.softdep` and `modules.alias` from the modules in `root`.
///
/// Compressed modules (`.ko.xz`, `.ko.zst`, as newer Debian releases ship them) are
/// decompressed in place, so that `finit_module(2)` takes them as they are.
///
/// # Errors
///
/// Any file that can't be read, written, decompressed or parsed, by path.
pub fn write_indexes(root: &Path) -> Result<(), ModuleError> {
    let mut infos = BTreeMap::new();
    for path in module_files(&root.join("kernel"))? {
        let path = decompress_in_place(path)?;
        let module = fs::read(&path).map_err(ModuleError::io("read", &path))?;
        let info = ModInfo::parse(&module)
            .map_err(|source| ModuleError::Parse { path: path.clone(), source })?;
        let file = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        infos.insert(module_name(&file), (file, info));
    }
    let (mut dep, mut softdep, mut alias) = (String::new(), String::new(), String::new());
    for (name, (file, info)) in &infos {
        let files = info.depends.iter().filter_map(|need| infos.get(&module_name(need)));
        let files: String = files.map(|(file, _)| format!(" {file}")).collect();
        dep += &format!("{file}:{files}\n");
        if !info.soft_before.is_empty() {
            softdep += &format!("softdep {name} pre: {}\n", info.soft_before.join(" "));
        }
        alias.extend(info.aliases.iter().map(|pattern| format!("alias {pattern} {name}\n")));
    }
    for (name, text) in [("dep", dep), ("softdep", softdep), ("alias", alias)] {
        write_whole(&root.join(format!("modules.{name}")), text.as_bytes())?;
    }
    Ok(())
}

/// A module without the signature that Debian's build appended (`kernel/module_signature.h`: the
/// signature, 12 bytes whose last 4 are its length in big-endian, the magic).
///
/// Checking it costs the guest 11 million instructions a module, more than all else about loading
/// it, and protects nothing: whoever could change the initramfs could change the kernel beside it.
/// The kernel takes unsigned modules and notes it in its taint flags; under lockdown it doesn't.
#[must_use]
pub fn without_signature(module: &[u8]) -> &[u8] {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else { return module };
    let Some((rest, length)) = signed.split_last_chunk::<4>() else { return module };
    let size = 8usize.saturating_add(u32::from_be_bytes(*length) as usize);
    rest.len().checked_sub(size).and_then(|end| rest.get(..end)).unwrap_or(module)
}

const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// `kernel/arch/x86/kvm/kvm-amd.ko` is called `kvm_amd`.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    stem.replace('-', "_")
}

fn parse_dep(text: &str) -> BTreeMap<String, Module> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let module = |(file, needs): (&str, &str)| {
        let depends = needs.split_ascii_whitespace().map(module_name).collect();
        (module_name(file), Module { file: file.to_owned(), depends })
    };
    lines.map(module).collect()
}

/// Lines of `softdep NAME pre: a b post: c`; what comes after is of no interest here.
fn parse_softdep(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("softdep ") else { continue };
        let Some((name, rest)) = rest.split_once(" pre:") else { continue };
        let before = rest.split("post:").next().unwrap_or_default();
        let before = before.split_ascii_whitespace().map(module_name);
        found.entry(module_name(name)).or_default().extend(before);
    }
    found
}

/// Lines of `alias PATTERN NAME`; patterns with wildcards name devices, not services.
fn parse_alias(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some("alias"), Some(pattern), Some(name)) =
            (words.next(), words.next(), words.next())
            && !pattern.contains(['*', '?', '['])
        {
            found.entry(module_name(pattern)).or_default().push(module_name(name));
        }
    }
    found
}

/// All module files below `dir`, sorted.
fn module_files(dir: &Path) -> Result<Vec<PathBuf>, ModuleError> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(ModuleError::io("read folder", &folder))?;
        for entry in entries {
            let entry = entry.map_err(ModuleError::io("read folder", &folder))?;
            let kind = entry.file_type().map_err(ModuleError::io("look at", &entry.path()))?;
            let is_module = entry.file_name().to_string_lossy().contains(".ko");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && is_module {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The largest module, in bytes, that is decompressed.
const MODULE_SIZE_MAX: usize = 256 << 20;

fn decompress_in_place(path: PathBuf) -> Result<PathBuf, ModuleError> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return Ok(path);
    }
    let packed = fs::read(&path).map_err(ModuleError::io("read", &path))?;
    let module = decompress(&packed, MODULE_SIZE_MAX)
        .map_err(|source| ModuleError::Decompress { path: path.clone(), source })?;
    let plain = path.with_extension("");
    write_whole(&plain, &module)?;
    fs::remove_file(&path).map_err(ModuleError::io("remove", &path))?;
    Ok(plain)
}

fn read_text(path: &Path) -> Result<String, ModuleError> {
    fs::read_to_string(path).map_err(ModuleError::io("read", path))
}

/// A module tree can't be read, or doesn't have what is asked of it.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// No such module.
    #[error("no module {name} in {} (wanted: {wanted})", root.display())]
    Unknown {
        /// The module that is missing.
        name: String,
        /// The requested module that led to it.
        wanted: String,
        /// The tree.
        root: PathBuf,
    },
    /// Modules that need one another.
    #[error("module {name} depends on itself")]
    Cycle {
        /// One of them.
        name: String,
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
    /// A file is no module.
    #[error("{}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModInfoError,
    },
    /// A compressed module is damaged.
    #[error("{}", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecompressError,
    },
    /// An index can't be written.
    #[error("cannot write a module index")]
    Write(#[from] CacheError),
}

impl ModuleError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::zstd;
    use crate::modinfo::tests::module;

    fn tree(files: &[(&str, &[&str])]) -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kernel")).unwrap();
        for (name, entries) in files {
            fs::write(dir.path().join("kernel").join(name), module(entries)).unwrap();
        }
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        write_indexes(dir.path()).unwrap();
        let tree = ModuleTree::open(dir.path()).unwrap();
        (dir, tree)
    }

    fn names(tree: &ModuleTree, wanted: &[&str]) -> Vec<String> {
        let steps = tree.load_order(wanted).unwrap();
        steps.iter().map(|step| module_name(&step.path.to_string_lossy())).collect()
    }

    fn virtio() -> (tempfile::TempDir, ModuleTree) {
        tree(&[
            ("virtio_ring.ko", &["depends="]),
            ("virtio.ko", &["depends=virtio_ring"]),
            ("virtio-blk.ko", &["depends=virtio,virtio_ring"]),
            ("kvm-amd.ko", &["depends=kvm"]),
            ("kvm.ko", &["depends=irqbypass"]),
            ("irqbypass.ko", &["depends="]),
        ])
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let (_dir, tree) = virtio();
        let order = names(&tree, &["virtio_blk", "virtio", "kvm-amd"]);
        assert_eq!(order, ["virtio_ring", "virtio", "virtio_blk", "irqbypass", "kvm", "kvm_amd"]);
    }

    #[test]
    fn parameters_go_to_the_module_that_was_asked_for() {
        let (_dir, tree) = virtio();
        let steps = tree.load_order(&["kvm", "kvm_amd nested=1 npt=0"]).unwrap();
        let params: Vec<&str> = steps.iter().map(|step| step.params.as_str()).collect();
        assert_eq!(params, ["", "", "nested=1 npt=0"]);
    }

    #[test]
    fn builtins_add_nothing_and_unknown_names_are_errors() {
        let (_dir, tree) = virtio();
        assert!(tree.load_order(&["ext4"]).unwrap().is_empty());
        assert!(tree.is_builtin("ext4"));
        let error = tree.load_order(&["virtio_foo"]).unwrap_err().to_string();
        assert!(error.contains("virtio_foo"), "{error}");
    }

    #[test]
    fn soft_dependencies_resolve_to_the_generic_implementation() {
        let (_dir, tree) = tree(&[
            ("btrfs.ko", &["depends=", "softdep=pre: crc32c absent"]),
            ("crc32c_generic.ko", &["depends=", "alias=crc32c"]),
            ("crc32c-intel.ko", &["depends=", "alias=crc32c"]),
        ]);
        assert_eq!(names(&tree, &["btrfs"]), ["crc32c_generic", "btrfs"]);
    }

    #[test]
    fn a_cycle_is_an_error() {
        let (_dir, tree) = tree(&[("a.ko", &["depends=b"]), ("b.ko", &["depends=a"])]);
        assert!(matches!(tree.load_order(&["a"]), Err(ModuleError::Cycle { .. })));
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kernel")).unwrap();
        let packed = zstd(&module(&["depends="]));
        fs::write(dir.path().join("kernel/a.ko.zst"), packed).unwrap();
        write_indexes(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("modules.dep")).unwrap(), b"kernel/a.ko:\n");
        assert!(dir.path().join("kernel/a.ko").is_file());
        assert!(!dir.path().join("kernel/a.ko.zst").exists());
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kernel")).unwrap();
        fs::write(dir.path().join("kernel/bad.ko"), b"not a module").unwrap();
        let error = write_indexes(dir.path()).unwrap_err().to_string();
        assert!(error.contains("bad.ko"), "{error}");
    }

    #[test]
    fn signatures_are_cut_off_whole() {
        let signed = |length: u32| {
            [b"code", &b"sig"[..], &[2; 8], &length.to_be_bytes(), SIGNATURE_MAGIC].concat()
        };
        assert_eq!(without_signature(&signed(3)), b"code");
        assert_eq!(without_signature(b"code"), b"code");
        for lie in [8, u32::MAX] {
            assert_eq!(without_signature(&signed(lie)), signed(lie));
        }
        assert_eq!(without_signature(SIGNATURE_MAGIC), SIGNATURE_MAGIC);
    }
}
