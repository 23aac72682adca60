//! Processor time of a group of programs and of all that they start, by a cgroup (version 2): to the
//! microsecond, and with those that have ended meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Joins the cgroup `$0`, says what there is to say in the file `$1`, and becomes the program.
const JOIN: &str = r#"echo $$ > "$0/cgroup.procs" && exec 2>>"$1" && shift && exec "$@""#;

/// A cgroup, which goes when this is dropped. Whoever is in it must have ended by then.
pub(super) struct Meter {
    folder: PathBuf,
}

impl Meter {
    /// Of a name that no other has.
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        let folder = root()?.join(format!("measure-{}-{name}", std::process::id()));
        let made = fs::create_dir(&folder);
        made.with_context(|| format!("{}: needs root", folder.display()))?;
        Ok(Self { folder })
    }

    /// A command line that runs this one in the cgroup, with its errors in `log`.
    pub(super) fn command<S: AsRef<OsStr>>(&self, log: &Path, words: &[S]) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["/bin/sh".into(), "-c".into(), JOIN.into()];
        all.extend([self.folder.clone().into_os_string(), log.as_os_str().to_owned()]);
        all.extend(words.iter().map(|word| word.as_ref().to_owned()));
        all
    }

    /// What was used so far, in milliseconds.
    pub(super) fn used_ms(&self) -> anyhow::Result<f64> {
        let path = self.folder.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(used.context("no usage_usec")?.parse::<f64>()? / 1e3)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// Where cgroups of version 2 are: alone, or beside those of version 1.
fn root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    mount.context("cgroups of version 2 are not mounted")
}
