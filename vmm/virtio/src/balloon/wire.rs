//! The structures of virtio 1.3 §5.5 as bytes, little-endian.
//!
//! ```text
//! struct virtio_balloon_config   (§5.5.4)      struct virtio_balloon_stat   (§5.5.6.3)
//!  0  num_pages               u32               0  tag   u16
//!  4  actual                  u32               2  val   u64
//!  8  free_page_hint_cmd_id   u32
//! 12  poison_val              u32
//! ```

/// Features (§5.5.3).
pub(super) const F_STATS_VQ: u32 = 1;
pub(super) const F_DEFLATE_ON_OOM: u32 = 2;
pub(super) const F_PAGE_POISON: u32 = 4;
pub(super) const F_REPORTING: u32 = 5;

/// Pages of the balloon are of this size whatever those of host and guest are (§5.5.6).
pub(super) const PAGE_SIZE: u64 = 4096;

pub(super) const CONFIG_SIZE: usize = 16;
/// What the device wants the balloon to hold.
pub(super) const NUM_PAGES: std::ops::Range<usize> = 0..4;
/// What it holds; the driver writes it.
pub(super) const ACTUAL: std::ops::Range<usize> = 4..8;
/// What the driver fills free pages with; it writes that, too.
pub(super) const POISON: std::ops::Range<usize> = 12..16;

/// A page frame number in the inflate or deflate queue.
pub(super) const FRAME_SIZE: u32 = 4;
/// A tag with its value.
pub(super) const STAT_SIZE: u32 = 10;

/// Names of statistics by their tags (§5.5.6.4).
pub(super) const STAT_NAMES: [&str; 16] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_cache_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "allocation_stalls",
    "async_scanned_pages",
    "direct_scanned_pages",
    "async_reclaimed_pages",
    "direct_reclaimed_pages",
];
