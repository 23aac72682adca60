//! `flist index`: an image's index, built before anyone needs it.

use std::path::PathBuf;

use clap::Args;
use rustix::process::{Resource, Rlimit};

/// Most processor time, in seconds. An image of a million files takes some ten.
const CPU_TIME_MAX_S: u64 = 60;
/// Most memory, in bytes.
const MEMORY_SIZE_MAX: u64 = 4 << 30;

/// Build the index of an image, unless it is there already
///
/// The first mount of the image then starts as fast as any other. The cache process has indexes
/// built this way: reading an image that somebody else made is best done in a process that has
/// nothing to lose, and whose memory goes when it is done.
#[derive(Args)]
pub(crate) struct IndexArguments {
    /// The image, `.fl` or `.flist`
    image: PathBuf,
    /// Where indexes of images are kept, such as /var/cache/flist/indexes
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
}

/// Runs the command.
pub(crate) fn run(arguments: &IndexArguments) -> anyhow::Result<()> {
    for (resource, limit) in [(Resource::Cpu, CPU_TIME_MAX_S), (Resource::As, MEMORY_SIZE_MAX)] {
        // A lower limit that somebody else has set is as good.
        let _ = rustix::process::setrlimit(
            resource,
            Rlimit { current: Some(limit), maximum: Some(limit) },
        );
    }
    flist::index::open_image(&arguments.index, &arguments.image)?;
    Ok(())
}
