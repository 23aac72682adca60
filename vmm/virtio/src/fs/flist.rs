//! An image as a file system: the index from the node's cache process, contents through it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

pub use flist_view::cache_client::CacheClient;
use flist_view::cache_client::ConnectError;
pub use flist_view::view::FlistView;

/// What gives a connected socket of the cache process, now and whenever that was restarted.
pub type Connector = Box<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// Opens the image at `image`, a path as the cache process sees it. `stores` replace the image's own
/// routes unless empty. The client is for [`Fs::with_cache`](super::Fs::with_cache).
///
/// # Errors
/// [`ConnectError`].
pub fn open(
    connector: Connector,
    image: &Path,
    stores: &[String],
) -> Result<(FlistView, Arc<CacheClient>), ConnectError> {
    let (client, index) = CacheClient::with_connector(connector, image, stores)?;
    let client = Arc::new(client);
    Ok((FlistView::new(Arc::new(index), Arc::clone(&client) as _), client))
}

/// Connects to the cache process at `path`, without waiting: what a [`Connector`] gives.
///
/// # Errors
/// What the host said: that nobody listens there, usually.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    flist_view::cache_client::socket::connect(path)
}
