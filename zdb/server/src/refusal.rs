//! Errors as clients read them: one line, without a code word (`reference: zdb 2.1`).

use std::borrow::Cow;

use zdb_engine::Error;

use crate::core::NamespaceId;

/// Why a command is not done. Its text follows `-` on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) text: Cow<'static, str>,
    /// Whether the client lacks a right, rather than an argument.
    pub(crate) is_unauthorized: bool,
    /// Whether the connection is of no more use.
    pub(crate) closes: bool,
    /// Not refused at all: to be tried again when this namespace is back.
    pub(crate) waits_for: Option<NamespaceId>,
}

/// What a handler gives: its reply is written, or there is a refusal and nothing was written.
pub(crate) type Outcome = Result<(), Refusal>;

impl Refusal {
    fn plain(text: Cow<'static, str>) -> Self {
        Self { text, is_unauthorized: false, closes: false, waits_for: None }
    }

    /// A right is missing.
    pub(crate) const fn unauthorized(text: &'static str) -> Self {
        let text = Cow::Borrowed(text);
        Self { text, is_unauthorized: true, closes: false, waits_for: None }
    }

    /// Nothing more can come of this connection.
    pub(crate) const fn closing(text: &'static str) -> Self {
        let text = Cow::Borrowed(text);
        Self { text, is_unauthorized: false, closes: true, waits_for: None }
    }

    /// Another thread has the namespace. A client never reads this.
    pub(crate) const fn postponed(id: NamespaceId) -> Self {
        let text = Cow::Borrowed("Try again");
        Self { text, is_unauthorized: false, closes: false, waits_for: Some(id) }
    }
}

impl From<&'static str> for Refusal {
    fn from(text: &'static str) -> Self {
        Self::plain(Cow::Borrowed(text))
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::plain(Cow::Owned(text))
    }
}

pub(crate) const PERMISSION_DENIED: Refusal = Refusal::unauthorized("Permission denied");
pub(crate) const ACCESS_DENIED: Refusal = Refusal::unauthorized("Access denied");
pub(crate) const READ_ONLY: Refusal = Refusal::unauthorized("Namespace is in read-only mode");

/// What clients are told when the disk refuses a value.
pub(crate) const SET_FAILED: &str = "Cannot write data right now";
/// What clients are told when the disk refuses a deletion.
pub(crate) const DELETE_FAILED: &str = "Cannot delete key (data)";

/// What a read was refused with.
pub(crate) fn read(error: &Error) -> Refusal {
    match error {
        Error::BadCursor => "Invalid key format".into(),
        other => common(other, "Internal Error"),
    }
}

/// What a write was refused with.
pub(crate) fn set(error: &Error) -> Refusal {
    match error {
        Error::KeySize { size: 0 } => "Invalid argument, key needed".into(),
        Error::KeySize { .. } => "Key too large".into(),
        Error::UnknownId => "Invalid key, only update authorized".into(),
        other => common(other, SET_FAILED),
    }
}

/// What a deletion was refused with.
pub(crate) fn delete(error: &Error) -> Refusal {
    match error {
        Error::Worm => "Cannot delete a key when namespace is in worm mode".into(),
        Error::KeySize { .. } => "Invalid key".into(),
        other => common(other, DELETE_FAILED),
    }
}

/// What all commands share; `otherwise` is for what only the disk can say.
pub(crate) fn common(error: &Error, otherwise: &'static str) -> Refusal {
    match error {
        Error::Frozen => "Namespace is temporarily frozen (read-write disabled)".into(),
        Error::Locked => "Namespace is temporarily locked (read-only)".into(),
        Error::Worm => "Namespace is protected by worm mode".into(),
        Error::Quota { .. } => "No space left on this namespace".into(),
        Error::KeyNeeded => Refusal::unauthorized("Namespace is encrypted, its key is needed"),
        Error::WrongKey => Refusal::unauthorized("This key does not open the namespace"),
        Error::ModeOfUsed => "Cannot change mode of used namespace".into(),
        Error::Exists(_) => "This namespace is not available".into(),
        Error::NoSuchNamespace(_) => "Namespace not found".into(),
        Error::Gap { first, asked } => {
            format!("The log is complete from {} on, asked for {}", first.0, asked.0).into()
        }
        other => {
            tracing::warn!(error = display_chain(other), "an operation failed");
            otherwise.into()
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn display_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
