//! What is wrong with a description, in words that name the flag, the value and the rule.

/// Longest part of a value that an error repeats, in characters.
const VALUE_SHOWN_MAX: usize = 80;

/// What is wrong with a description. Devices are named by their flag and place, whether they came
/// as flags or as JSON: `--disk[1]` is the second of `disks`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The JSON is no description.
    #[error("{at}: {message}")]
    Json {
        /// The field, such as `disks[1].serial`, or `the description` as a whole.
        at: String,
        /// What is wrong there, with line and column.
        message: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// The JSON is of another version than this program reads.
    #[error("version {found}: this program reads version {}", crate::SPEC_VERSION)]
    Version {
        /// What the JSON says.
        found: String,
    },
    /// A device option that does not exist.
    #[error("{flag} has no option {key:?}; it has {}", known.join(", "))]
    UnknownOption {
        /// The flag.
        flag: String,
        /// What was given.
        key: String,
        /// What exists.
        known: Vec<&'static str>,
        /// The one that may have been meant.
        suggestion: Option<&'static str>,
    },
    /// A value breaks a rule.
    #[error("{what}: {rule}")]
    Value {
        /// The flag and value, such as `--disk[1] serial="x"`.
        what: String,
        /// The rule.
        rule: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// Something that cannot be done without.
    #[error("{what} is missing: {why}")]
    Missing {
        /// The flag, and the option of a device.
        what: String,
        /// What it is needed for.
        why: String,
    },
    /// Two parts that cannot be had together.
    #[error("{0}")]
    Conflict(String),
}

impl SpecError {
    /// What to try, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let meant = |suggestion: &str| format!("did you mean `{suggestion}`?");
        match self {
            Self::Json { suggestion, .. } | Self::Value { suggestion, .. } => {
                suggestion.as_deref().map(meant)
            }
            Self::UnknownOption { suggestion, .. } => suggestion.map(meant),
            Self::Version { .. } | Self::Missing { .. } | Self::Conflict(_) => None,
        }
    }

    /// `option` of `flag` has a value that breaks `rule`.
    pub(crate) fn option(flag: &str, option: &str, value: &str, rule: impl Into<String>) -> Self {
        Self::value(format!("{flag} {option}={}", quoted(value)), rule)
    }

    /// `flag` has a value that breaks `rule`.
    pub(crate) fn flag(flag: &str, value: &str, rule: impl Into<String>) -> Self {
        Self::value(format!("{flag} {}", quoted(value)), rule)
    }

    fn value(what: String, rule: impl Into<String>) -> Self {
        Self::Value { what, rule: rule.into(), suggestion: None }
    }

    /// The same, with what may have been meant.
    pub(crate) fn suggest(mut self, meant: Option<String>) -> Self {
        if let Self::Value { suggestion, .. } = &mut self {
            *suggestion = meant;
        }
        self
    }

    pub(crate) fn missing(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Missing { what: what.into(), why: why.into() }
    }
}

/// The value as a person would quote it, cut where it gets long; control characters are escaped.
fn quoted(value: &str) -> String {
    if value.chars().count() <= VALUE_SHOWN_MAX {
        return format!("{value:?}");
    }
    let start: String = value.chars().take(VALUE_SHOWN_MAX).collect();
    format!("{start:?}…")
}
