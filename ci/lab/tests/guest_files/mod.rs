//! What a node needs to run a VM, built once for all tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use boot_image::guest::{Recipe, build, build_static};
use boot_image::{Cache, KernelPackage};
use lab::Flavour;

/// Files on this host.
pub(crate) struct Files {
    /// The VMM, static.
    pub(crate) vmm: PathBuf,
    /// The guest's kernel.
    pub(crate) vmlinux: PathBuf,
    /// The guest's initramfs.
    pub(crate) initramfs: PathBuf,
}

/// Builds them, or says where they are.
pub(crate) fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let cache = Cache::from_env().unwrap();
        let kernel = KernelPackage::fetch(Flavour::Cloud, &cache).unwrap();
        let init = build_static(&workspace(), &["--package", "guest-init", "--bin", "guest-init"]);
        let out = cache.folder("guest-vmm").unwrap();
        let recipe = Recipe { kernel: &kernel, init: &init.unwrap(), out: &out, zstd_level: 3 };
        let built = build(&recipe).unwrap();
        let vmm = build_static(&workspace(), &["--package", "vmm", "--bin", "vmm"]).unwrap();
        Files { vmm, vmlinux: built.vmlinux, initramfs: built.initramfs }
    })
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
