//! What to start, and what to do when it ends.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes.
pub const NAME_SIZE_MAX: usize = 64;
/// Most arguments, the program itself included.
pub const ARGUMENT_COUNT_MAX: usize = 512;
/// Most variables of the environment.
pub const VARIABLE_COUNT_MAX: usize = 128;
/// Most descriptors that a program may be given.
pub const DESCRIPTOR_COUNT_MAX: usize = 16;
/// The first number of those descriptors in the program; the others follow.
pub const DESCRIPTOR_FIRST: i32 = 3;
/// Smallest log file at which the next one is begun, in bytes.
pub const LOG_SIZE_MIN: u64 = 4096;
/// Most old log files that are kept.
pub const LOG_KEPT_MAX: u32 = 16;
/// Most crashes that a policy may count.
pub const CRASH_COUNT_MAX: u32 = 64;

/// A program to run. Its name says which one it is: to start it twice is to start it once.
///
/// It gets a session of its own, `/dev/null` as its input, and of the descriptors only those that came
/// with the request, from [`DESCRIPTOR_FIRST`] on, again at every restart. Secrets belong into files or
/// descriptors, never in `argv` or `env`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with a dot.
    pub name: String,
    /// The program's absolute path, and its arguments.
    pub argv: Vec<String>,
    /// All of its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where it runs; `/` if nothing is said.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// Where its output and errors go; nowhere if nothing is said.
    #[serde(default)]
    pub log: Option<Log>,
    /// What to do when it ends.
    #[serde(default)]
    pub policy: Policy,
    /// What it may take of the machine.
    #[serde(default)]
    pub limits: Limits,
    /// A network namespace to run in, by its file's absolute path.
    #[serde(default)]
    pub network_namespace: Option<PathBuf>,
    /// How much sooner than others it is to end when the machine's memory runs out, from -1000 (never) to
    /// 1000 (first): `proc(5)`, `oom_score_adj`. 0 leaves it as it is, and so does a machine that does not let
    /// us spare anybody (`CAP_SYS_RESOURCE`).
    #[serde(default)]
    pub oom_score_adj: i16,
}

/// A log file and its predecessors: `path`, `path.1` (the youngest), `path.2` …
///
/// A program never waits for its log: what comes faster than the disk takes it, or faster than
/// [`RATE_MAX`](crate::supervisor::RATE_MAX), is left out, and the log says how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The file's absolute path. Its folder must exist.
    pub path: PathBuf,
    /// Bytes after which the next file is begun.
    pub size_max: u64,
    /// Old files that are kept.
    pub kept: u32,
}

/// What to do when a program ends by itself.
///
/// ```text
///   exit in `finals` ─────────────────────────────────────────> ended
///   exit in `clean`  ── wait ──────────────────────────────────> started again
///   any other exit, any signal: a crash
///        `restarts` is false ──────────────────────────────────> ended
///        `crashes_max` of them within `window_ms` ─────────────> given up
///        otherwise ── wait ────────────────────────────────────> started again
/// ```
///
/// The wait is `backoff_ms` at first and doubles up to `backoff_max_ms` with each run that is shorter than
/// [`STEADY`](crate::supervisor::STEADY), whatever ended it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Whether it is started again at all.
    pub restarts: bool,
    /// Statuses that are no crash: it is started again without being counted.
    pub clean: Vec<u8>,
    /// Statuses after which it is not started again.
    pub finals: Vec<u8>,
    /// At this many crashes within the window it is given up; never if nothing is said. A restart that
    /// cannot even be tried gives up at once then.
    pub crashes_max: Option<u32>,
    /// The window, in milliseconds.
    pub window_ms: u64,
    /// The first wait before a restart, in milliseconds.
    pub backoff_ms: u64,
    /// The longest wait, in milliseconds.
    pub backoff_max_ms: u64,
}

/// What a program and all that it starts may take. They need a cgroup: [`Status::cgroup`] says whether
/// there is one, and without one they are not applied.
///
/// [`Status::cgroup`]: crate::Status::cgroup
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of memory (`memory.max`).
    pub memory_max: Option<u64>,
    /// Processes and threads (`pids.max`).
    pub pids_max: Option<u32>,
    /// Hundredths of one CPU (`cpu.max`): 150 is one and a half.
    pub cpu_max_percent: Option<u32>,
}

/// Which rule a description breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The name.
    #[error("name '{0}': 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.'")]
    Name(String),
    /// The program's path.
    #[error("argv: it begins with a program's absolute path")]
    Path,
    /// Too many of something.
    #[error("{what}: {count} of them, at most {count_max} are allowed")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        count_max: usize,
    },
    /// Something that a process cannot have.
    #[error("{what}: it holds a NUL, or a name that is empty or holds '='")]
    Text {
        /// Where.
        what: &'static str,
    },
    /// A path that is relative.
    #[error("{what} {}: expected an absolute path", path.display())]
    Relative {
        /// Which.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A number out of its range.
    #[error("{what} {value}: expected {rule}")]
    Number {
        /// Which.
        what: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Default for Policy {
    /// Not started again.
    fn default() -> Self {
        Self {
            restarts: false,
            clean: Vec::new(),
            finals: Vec::new(),
            crashes_max: None,
            window_ms: Self::WINDOW_MS,
            backoff_ms: 250,
            backoff_max_ms: 10_000,
        }
    }
}

impl Policy {
    /// Two minutes.
    pub const WINDOW_MS: u64 = 120_000;

    /// Of a program that must always run: started again for ever, whatever ended it.
    #[must_use]
    pub fn service() -> Self {
        Self { restarts: true, ..Self::default() }
    }

    /// Of a virtual machine: a guest that switches itself off (`clean`) is started again, a description
    /// that is wrong (`finals`) is not, and the fourth crash within two minutes is the last.
    #[must_use]
    pub fn machine(clean: &[u8], finals: &[u8]) -> Self {
        Self {
            restarts: true,
            clean: clean.to_vec(),
            finals: finals.to_vec(),
            crashes_max: Some(4),
            ..Self::default()
        }
    }
}

impl Program {
    /// A program that is not started again, without a log or limits.
    pub fn new<A: Into<String>>(
        name: impl Into<String>,
        argv: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            name: name.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            directory: None,
            log: None,
            policy: Policy::default(),
            limits: Limits::default(),
            network_namespace: None,
            oom_score_adj: 0,
        }
    }

    /// Whether it can be started at all, as far as the description says.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), ProgramError> {
        check_name(&self.name)?;
        if !self.argv.first().is_some_and(|path| path.starts_with('/')) {
            return Err(ProgramError::Path);
        }
        count("argv", self.argv.len(), ARGUMENT_COUNT_MAX)?;
        count("env", self.env.len(), VARIABLE_COUNT_MAX)?;
        text("argv", self.argv.iter().all(|argument| !argument.contains('\0')))?;
        let is_name = |name: &str| !name.is_empty() && !name.contains(['\0', '=']);
        text("env", self.env.iter().all(|(key, value)| is_name(key) && !value.contains('\0')))?;
        absolute("directory", self.directory.as_ref())?;
        absolute("network_namespace", self.network_namespace.as_ref())?;
        if let Some(log) = &self.log {
            absolute("log", Some(&log.path))?;
            let rule = "at least 4096";
            number("log size_max", log.size_max, log.size_max >= LOG_SIZE_MIN, rule)?;
            number("log kept", log.kept.into(), log.kept <= LOG_KEPT_MAX, "at most 16")?;
        }
        let score = self.oom_score_adj;
        let is_good = (-1000..=1000).contains(&score);
        number("oom_score_adj", score.unsigned_abs().into(), is_good, "-1000 to 1000")?;
        self.policy.check()?;
        self.limits.check()
    }
}

impl Policy {
    fn check(&self) -> Result<(), ProgramError> {
        if let Some(count) = self.crashes_max {
            let is_good = (1..=CRASH_COUNT_MAX).contains(&count);
            number("policy crashes_max", count.into(), is_good, "1 to 64")?;
        }
        let is_good = (1..=self.backoff_max_ms).contains(&self.backoff_ms);
        number("policy backoff_ms", self.backoff_ms, is_good, "1 to backoff_max_ms")?;
        let is_good = self.backoff_max_ms <= 3_600_000;
        number("policy backoff_max_ms", self.backoff_max_ms, is_good, "at most an hour")
    }
}

impl Limits {
    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<(), ProgramError> {
        let given = [
            ("limits memory_max", self.memory_max),
            ("limits pids_max", self.pids_max.map(u64::from)),
            ("limits cpu_max_percent", self.cpu_max_percent.map(u64::from)),
        ];
        given.into_iter().filter_map(|(what, value)| Some((what, value?))).try_for_each(
            |(what, value)| number(what, value, value > 0, "at least 1, or nothing for no limit"),
        )
    }
}

/// Whether a program may have this name.
///
/// # Errors
/// [`ProgramError::Name`].
pub fn check_name(name: &str) -> Result<(), ProgramError> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=NAME_SIZE_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(is_good)
    {
        return Ok(());
    }
    Err(ProgramError::Name(name.chars().take(NAME_SIZE_MAX).collect()))
}

fn count(what: &'static str, count: usize, count_max: usize) -> Result<(), ProgramError> {
    if count <= count_max { Ok(()) } else { Err(ProgramError::Count { what, count, count_max }) }
}

fn text(what: &'static str, is_good: bool) -> Result<(), ProgramError> {
    if is_good { Ok(()) } else { Err(ProgramError::Text { what }) }
}

fn number(
    what: &'static str,
    value: u64,
    is_good: bool,
    rule: &'static str,
) -> Result<(), ProgramError> {
    if is_good { Ok(()) } else { Err(ProgramError::Number { what, value, rule }) }
}

fn absolute(what: &'static str, path: Option<&PathBuf>) -> Result<(), ProgramError> {
    let Some(path) = path else { return Ok(()) };
    text(what, !path.as_os_str().as_encoded_bytes().contains(&0))?;
    if path.is_absolute() {
        return Ok(());
    }
    Err(ProgramError::Relative { what, path: path.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_defaults_and_nothing_else_passes() {
        let text = r#"{"name":"a","argv":["/bin/true"],"policy":{"restarts":true}}"#;
        let program: Program = serde_json::from_str(text).unwrap();
        let expected = Program { policy: Policy::service(), ..Program::new("a", ["/bin/true"]) };
        assert_eq!(program, expected);
        program.check().unwrap();
        assert!(serde_json::from_str::<Program>(r#"{"name":"a","argv":[],"nice":1}"#).is_err());
    }

    #[test]
    fn rules_are_named() {
        let good = || Program::new("vm-1", ["/bin/true"]);
        let broken: [(Program, &str); 10] = [
            (Program { oom_score_adj: -1001, ..good() }, "oom_score_adj 1001: expected -1000"),
            (Program { name: "../x".into(), ..good() }, "name '../x'"),
            (Program { name: "x".repeat(65), ..good() }, "name 'xxx"),
            (Program { argv: vec!["true".into()], ..good() }, "argv: it begins"),
            (Program { argv: vec!["/bin/true".into(); 513], ..good() }, "argv: 513 of them"),
            (Program { argv: vec!["/bin/true".into(), "\0".into()], ..good() }, "argv: it holds"),
            (Program { env: [("A=".into(), String::new())].into(), ..good() }, "env: it holds"),
            (Program { directory: Some("x".into()), ..good() }, "directory x: expected"),
            (
                Program { log: Some(Log { path: "/l".into(), size_max: 1, kept: 1 }), ..good() },
                "log size_max 1: expected at least",
            ),
            (
                Program { limits: Limits { pids_max: Some(0), ..Limits::default() }, ..good() },
                "limits pids_max 0",
            ),
        ];
        for (program, text) in broken {
            let error = program.check().unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
        good().check().unwrap();
        Program { policy: Policy::machine(&[0], &[2]), ..good() }.check().unwrap();
    }
}
