//! What it takes to boot a guest, built once for all tests of a program.

#![allow(dead_code, reason = "each test program uses its share of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use boot_image::guest::{Built, Recipe, build, build_dynamic, build_static};
use boot_image::{Cache, KernelPackage};
use lab::Flavour;

/// The kernel and initramfs of guests.
pub(crate) fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cache = Cache::from_env().unwrap();
        let kernel = KernelPackage::fetch(Flavour::Cloud, &cache).unwrap();
        let init = build_static(&workspace(), &["--package", "guest-init", "--bin", "guest-init"]);
        let out = cache.folder("guest-test").unwrap();
        let recipe = Recipe { kernel: &kernel, init: &init.unwrap(), out: &out, zstd_level: 3 };
        build(&recipe).unwrap()
    })
}

/// A guest's own init that says what it was given; static.
pub(crate) fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        build_static(&workspace(), &["--package", "probe", "--bin", "probe"]).unwrap()
    })
}

/// The lab's agent, of which guests use the tools; static.
pub(crate) fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| {
        build_static(&workspace(), &["--package", "lab-agent", "--bin", "lab-agent"]).unwrap()
    })
}

/// The VMM; static.
pub(crate) fn vmm() -> &'static Path {
    static VMM: OnceLock<PathBuf> = OnceLock::new();
    VMM.get_or_init(|| build_static(&workspace(), &["--package", "vmm", "--bin", "vmm"]).unwrap())
}

/// The `flist` command, with libraries.
pub(crate) fn flist() -> &'static Path {
    static FLIST: OnceLock<PathBuf> = OnceLock::new();
    FLIST.get_or_init(|| {
        build_dynamic(&workspace(), &["--package", "flist", "--bin", "flist"]).unwrap()
    })
}

/// The `zdb` command, with libraries.
pub(crate) fn zdb() -> &'static Path {
    static ZDB: OnceLock<PathBuf> = OnceLock::new();
    ZDB.get_or_init(|| {
        build_dynamic(&workspace(), &["--package", "zdb-server", "--bin", "zdb"]).unwrap()
    })
}

/// Writes a `cidata` disk to `image`, of a guest with a name and a network.
pub(crate) fn write_cidata(image: &Path, user_data: &str, zosrc: &str) {
    let files = [
        ("meta-data", "#cloud-config\ninstance-id: x\nlocal-hostname: my-vm\n"),
        ("network-config", NETWORK),
        ("user-data", user_data),
        ("zosrc", zosrc),
    ];
    lab::write_cidata(image, &files).unwrap();
}

pub(crate) fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a guest's probe said.
pub(crate) struct Console {
    pub(crate) text: String,
}

impl Console {
    /// What the probe said under `key`.
    pub(crate) fn get(&self, key: &str) -> String {
        let prefix = format!("probe: {key} \"");
        let line = self.text.lines().find_map(|line| line.trim_end().strip_prefix(&prefix));
        let line = line.unwrap_or_else(|| panic!("nothing about {key}:\n{}", self.text));
        unquote(line.strip_suffix('"').unwrap())
    }

    pub(crate) fn size(&self, path: &str) -> u64 {
        self.get(&format!("size {path}")).parse().unwrap()
    }
}

/// Undoes Rust's quoting, as far as the probe's values need it.
fn unquote(quoted: &str) -> String {
    let mut chars = quoted.chars();
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (c, false) => text.push(c),
            (_, true) => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => {}
            },
        }
    }
    text
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The network of every guest, one card.
pub(crate) const NETWORK: &str =
    include_str!("../../../../guest-images/guest-init/tests/network-config.yaml");
