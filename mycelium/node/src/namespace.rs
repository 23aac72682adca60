//! Network namespaces, which an instance lives in: entered by a thread, for good.
//!
//! All that the thread opens from then on, and what threads that it starts open, is of that namespace:
//! sockets, listeners, the TUN device. The rest of the process stays where it is. Files stay the same for
//! all, `/etc/resolv.conf` too; `/sys` and `/proc/net` show the process's first namespace, so who asks for
//! interfaces asks the kernel ([`crate::interfaces`]).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps namespaces by name.
const FOLDER: &str = "/run/netns";

/// A namespace that can't be entered.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {path}: {step}")]
pub(crate) struct NamespaceError {
    /// Where it was looked for.
    pub(crate) path: PathBuf,
    /// What failed.
    pub(crate) step: &'static str,
    /// Why.
    #[source]
    pub(crate) source: io::Error,
}

impl NamespaceError {
    /// What a person can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self.source.kind() {
            io::ErrorKind::NotFound => Some("`ip netns list` shows namespaces by their names"),
            io::ErrorKind::PermissionDenied => Some("namespaces need CAP_SYS_ADMIN"),
            io::ErrorKind::InvalidInput => Some("the file is no network namespace"),
            _ => None,
        }
    }
}

/// A network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    path: PathBuf,
    file: Arc<File>,
}

impl Namespace {
    /// Opens one, by the name that `ip netns` knows or by its path.
    pub(crate) fn open(name: &str) -> Result<Self, NamespaceError> {
        let path = path(name);
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file: Arc::new(file) }),
            Err(source) => Err(NamespaceError { path, step: "can't be opened", source }),
        }
    }

    /// Has the calling thread live in it from now on.
    pub(crate) fn enter(&self) -> Result<(), NamespaceError> {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.file.as_fd(), network).map_err(|error| NamespaceError {
            path: self.path.clone(),
            step: "can't be entered",
            source: error.into(),
        })
    }
}

fn path(name: &str) -> PathBuf {
    if name.contains('/') { PathBuf::from(name) } else { Path::new(FOLDER).join(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        assert_eq!(path("ndmz"), Path::new("/run/netns/ndmz"));
        assert_eq!(path("/proc/1/ns/net"), Path::new("/proc/1/ns/net"));
    }

    #[test]
    fn what_is_no_namespace_is_refused_with_its_path() {
        let error = Namespace::open("no-such-namespace").unwrap_err();
        assert!(error.to_string().contains("/run/netns/no-such-namespace"), "{error}");
        assert!(error.hint().is_some());
        assert!(Namespace::open("/dev/null").unwrap().enter().is_err());
    }

    #[test]
    fn a_thread_may_stay_where_it_is() {
        // Entering needs a privilege, even for one's own namespace.
        let own = Namespace::open("/proc/thread-self/ns/net").unwrap();
        match std::thread::spawn(move || own.enter()).join().unwrap() {
            Ok(()) => {}
            Err(error) => assert_eq!(error.source.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
