//! The legacy generation, `.flist`.
use std::path::Path;

use super::Image;
use super::error::Fault;

/// Reads the image at `path`, which begins with gzip's magic.
pub(super) fn read(_path: &Path) -> Result<Image, Fault> {
    Err(Fault::File("legacy images are not read yet".to_owned()))
}
