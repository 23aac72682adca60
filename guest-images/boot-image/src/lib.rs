//! Kernels and initramfs images from Debian packages and static binaries.
//!
//! Everything in this project that boots, a lab machine, a guest, a node, boots a kernel that
//! Debian built, with an initramfs that we built. This crate is where both come from:
//!
//! - [`kernel`] asks apt for the kernel package of a [`Flavour`], unpacks it once into a cache
//!   and hands out paths: `vmlinuz`, the uncompressed `vmlinux`, the modules.
//! - [`modules`] knows which modules a module needs, and in which order to load them. Debian's
//!   packages carry no `modules.dep` (that is made on installation), so it is made here, from
//!   the modules' own `.modinfo`.
//! - [`vmlinux`] takes the ELF kernel out of a `bzImage`: a VMM that loads it saves the guest
//!   the decompression and 40 MiB of touched memory.
//! - [`initramfs`] writes the `newc` archive the kernel unpacks as its first root: byte for
//!   byte the same for the same input.
//! - [`guest`] puts these together: the kernel and initramfs that guests boot.
//! - [`cache`] decides where all of it is kept, and makes concurrent runs safe.
//!
//! The lab (`ci/lab`), the guest recipe and the node image builder call this crate; the
//! `boot-image` binary is for people and scripts. It installs nothing and needs no root: the
//! programs it calls are `apt-cache`, `apt-get download` and `dpkg-deb`.
//!
//! ```no_run
//! use boot_image::{Cache, Flavour, Initramfs, KernelPackage};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kernel = KernelPackage::fetch(Flavour::Cloud, &Cache::from_env()?)?;
//! let mut initramfs = Initramfs::new();
//! initramfs.host_file("init", 0o755, std::path::Path::new("target/guest-init"))?;
//! initramfs.modules(&kernel.modules()?, &["virtio_pci", "virtio_blk"])?;
//! std::fs::write("initramfs.cpio.zst", initramfs.build_zstd(12)?)?;
//! println!("boot {} with it", kernel.vmlinux()?.display());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod cache;
pub mod decompress;
pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod modinfo;
pub mod modules;
pub mod vmlinux;

pub use cache::Cache;
pub use initramfs::Initramfs;
pub use kernel::{Flavour, KernelPackage};
pub use modules::ModuleTree;
