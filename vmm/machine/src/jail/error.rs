//! Why a jail cannot be closed.

use std::io;

/// Why a jail cannot be closed: which wall, and what is in the way.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host refused something.
    #[error("the jail's {wall}: {what}")]
    Host {
        /// Which wall.
        wall: &'static str,
        /// What was tried.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// An id that this user cannot become.
    #[error("--jail {key}={id}: {rule}")]
    Id {
        /// `uid` or `gid`.
        key: &'static str,
        /// The id.
        id: u32,
        /// Why not.
        rule: &'static str,
    },
    /// Nothing would keep the VMM from the host's files.
    #[error(
        "the jail would have no walls around the host's files, which a shared directory's device \
         opens: no mount namespace ({namespace}), no Landlock ({landlock})"
    )]
    NoWalls {
        /// Why there is no namespace.
        namespace: String,
        /// Why there is no Landlock.
        landlock: String,
    },
    /// The warden failed before the jail was closed.
    #[error("the jail's warden: {0}")]
    Warden(String),
}

impl JailError {
    /// What to do about it, where that is known.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Id { .. } => Some("leave it out, or start the VMM as root"),
            Self::NoWalls { .. } => Some(
                "let users make namespaces (`sudo sysctl user.max_user_namespaces=10000`), or boot \
                 with landlock in `lsm=`; `vmm check` tells",
            ),
            Self::Host { .. } | Self::Warden(_) => None,
        }
    }

    pub(super) fn host(wall: &'static str, what: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |source| Self::Host { wall, what, source }
    }
}
