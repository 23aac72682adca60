//! `/hub/USER/NAME.fl`: images from a folder that `flist publish` wrote, and their checksums.
//!
//! A name is believed nothing: its parts may not begin with a dot, and what it leads to must lie in the
//! folder, links followed. The checksum of an image that has none in a file is computed.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use md5::{Digest as _, Md5};

/// Largest image that is served. Images hold metadata; their contents are in stores.
const IMAGE_SIZE_MAX: u64 = 256 << 20;
/// Longest name, in parts.
const PART_COUNT_MAX: usize = 8;

/// The images of `folder`.
pub(crate) fn router(folder: PathBuf) -> Router {
    Router::new().route("/hub/{*name}", get(image)).with_state(folder)
}

async fn image(State(folder): State<PathBuf>, UrlPath(name): UrlPath<String>) -> Response {
    match tokio::task::spawn_blocking(move || read(&folder, &name)).await {
        Ok(Ok(bytes)) => bytes.into_response(),
        Ok(Err(status)) => status.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, StatusCode> {
    let is_plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\0');
    if name.split('/').count() > PART_COUNT_MAX || !name.split('/').all(is_plain) {
        return Err(StatusCode::NOT_FOUND);
    }
    match read_file(folder, name) {
        Err(StatusCode::NOT_FOUND) => {
            let image = name.strip_suffix(".md5").ok_or(StatusCode::NOT_FOUND)?;
            let digest = Md5::digest(read_file(folder, image)?);
            let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(format!("{digits}\n").into_bytes())
        }
        other => other,
    }
}

fn read_file(folder: &Path, name: &str) -> Result<Vec<u8>, StatusCode> {
    let absent = |_| StatusCode::NOT_FOUND;
    let folder = folder.canonicalize().map_err(absent)?;
    let path = folder.join(name).canonicalize().map_err(absent)?;
    if !path.starts_with(&folder) {
        return Err(StatusCode::NOT_FOUND);
    }
    let file = File::open(path).map_err(absent)?;
    let metadata = file.metadata().map_err(absent)?;
    if !metadata.is_file() {
        return Err(StatusCode::NOT_FOUND);
    }
    let mut bytes = Vec::new();
    file.take(IMAGE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(absent)?;
    if bytes.len() as u64 > IMAGE_SIZE_MAX {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_served_with_their_checksums() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("me")).unwrap();
        std::fs::write(folder.path().join("me/a.fl"), "abc").unwrap();
        assert_eq!(read(folder.path(), "me/a.fl").unwrap(), b"abc");
        let computed = read(folder.path(), "me/a.fl.md5").unwrap();
        assert_eq!(computed, b"900150983cd24fb0d6963f7d28e17f72\n");
        std::fs::write(folder.path().join("me/a.fl.md5"), "written\n").unwrap();
        assert_eq!(read(folder.path(), "me/a.fl.md5").unwrap(), b"written\n");
        assert_eq!(read(folder.path(), "me/b.fl.md5"), Err(StatusCode::NOT_FOUND));
        assert_eq!(read(folder.path(), "me"), Err(StatusCode::NOT_FOUND));
    }

    #[test]
    fn nothing_outside_of_the_folder_is_served() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("hub");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(outer.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        let absolute = outer.path().join("secret").display().to_string();
        for name in
            ["../secret", "a/../../secret", "link", "./link", ".hidden", "", "a//b", &absolute]
        {
            assert_eq!(read(&folder, name), Err(StatusCode::NOT_FOUND), "{name}");
        }
    }
}
