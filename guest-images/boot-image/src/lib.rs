//! Kernels and initramfs images from Debian packages and static binaries.
