//! A line between two programs, which a test can cut.
//!
//! While it is cut, what was connected is closed, and whoever connects is hung up on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A line, until its runtime ends.
pub(crate) struct Line {
    /// The end that is connected to.
    pub(crate) address: SocketAddr,
    /// The other end; none while it is cut.
    target: Arc<watch::Sender<Option<SocketAddr>>>,
}

impl Line {
    /// Lays a line to `target`.
    pub(crate) async fn lay(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(watch::channel(Some(target)).0);
        let lines = Arc::clone(&target);
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(near, lines.subscribe()));
            }
        });
        Self { address, target }
    }

    /// Cuts it.
    pub(crate) fn cut(&self) {
        self.target.send_replace(None);
    }

    /// Lays it again. What is not cut stays connected.
    pub(crate) fn mend(&self, target: SocketAddr) {
        self.target.send_if_modified(|now| now.replace(target) != Some(target));
    }
}

/// Carries one connection until one side ends it, or the line is cut.
async fn carry(mut near: TcpStream, mut target: watch::Receiver<Option<SocketAddr>>) {
    let now = *target.borrow_and_update();
    let Some(address) = now else { return };
    let Ok(mut far) = TcpStream::connect(address).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = target.changed() => {}
    }
}
