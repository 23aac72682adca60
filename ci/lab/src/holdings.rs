//! What a machine holds beside its own: the leak checker.
//!
//! Whatever a program made must go with it: network namespaces and links in them, `nft` tables, mounts,
//! loop devices, files, processes and cgroups. [`Holdings::of`] writes down what there is, before and
//! after, and [`Holdings::since`] says what is new and what is missing, a line each.
//!
//! The machine needs [`HOLDINGS_PROGRAMS`] to be looked at. Threads of its kernel are not counted, nor is
//! whoever looks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::error::LabError;
use crate::machine::Machine;

/// What a machine has to have, to be looked at.
pub const HOLDINGS_PROGRAMS: [&str; 3] = ["/bin/bash", "/sbin/ip", "/usr/sbin/nft"];

/// How long a look may take.
const LOOK_TIME_MAX: Duration = Duration::from_secs(120);

/// Lists all of it: a kind, a space, and a name on each line. Folders are its arguments.
const LIST: &str = r##"
shopt -s nullglob dotglob globstar
links() { while read -r _ name _; do name=${name%%@*}; echo "link $1${name%:}"; done; }
ip -o link | links ""
tables() { while read -r _ family name; do echo "table $1$family $name"; done; }
nft list tables | tables ""
for path in /run/netns/*; do
    name=${path##*/}
    echo "namespace $name"
    ip netns exec "$name" ip -o link | links "$name/"
    ip netns exec "$name" nft list tables | tables "$name/"
done
while read -r _ target _; do echo "mount $target"; done </proc/mounts
for file in /sys/block/loop*/loop/backing_file; do read -r backing <"$file" && echo "loop $backing"; done
for path in /sys/fs/cgroup/**/cgroup.procs; do echo "cgroup ${path%/cgroup.procs}"; done
for folder; do for path in "$folder"/**/*; do echo "file $path"; done; done
for process in /proc/[0-9]*; do
    [[ -e $process/exe && ${process#/proc/} != $$ ]] || continue
    read -r name <"$process/comm" && echo "process $name"
done 2>/dev/null
"##;

/// What a machine holds at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holdings(BTreeMap<String, usize>);

impl Holdings {
    /// Looks at a machine, and at all that is below these folders of it.
    ///
    /// # Errors
    ///
    /// The machine fails, or can't be looked at.
    pub fn of(machine: &Machine, folders: &[&str]) -> Result<Self, LabError> {
        let look = [&["/bin/bash", "-c", LIST, "holdings"], folders].concat();
        let looked = machine.command(&look).env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin");
        let listed = looked.timeout(LOOK_TIME_MAX).run()?.success()?.text();
        Ok(Self::read(&listed))
    }

    fn read(listed: &str) -> Self {
        let mut found = BTreeMap::new();
        for line in listed.lines() {
            *found.entry(line.trim_end().to_owned()).or_default() += 1;
        }
        Self(found)
    }

    /// What is there now and was not before, with a `+`, and what is missing, with a `-`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (sign, now, then) in [('+', self, before), ('-', before, self)] {
            for (line, count) in &now.0 {
                let more = count.saturating_sub(then.0.get(line).copied().unwrap_or(0));
                lines.extend((0..more).map(|_| format!("{sign} {line}")));
            }
        }
        lines
    }

    /// How many there are of a kind, of those whose names begin so: `"process", "vmm"`.
    #[must_use]
    pub fn count(&self, kind: &str, name: &str) -> usize {
        let begin = format!("{kind} {name}");
        let those = self.0.iter().filter(|(line, _)| line.starts_with(&begin));
        those.map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(line, count)| writeln!(f, "{count} {line}"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_new_and_what_is_missing_are_told() {
        let before = Holdings::read("link lo\nprocess hostd\nprocess zdb\n");
        let after = Holdings::read("link lo\nprocess hostd\nprocess hostd\nlink u-1\n");
        assert_eq!(after.since(&before), ["+ link u-1", "+ process hostd", "- process zdb"]);
        assert_eq!(before.since(&before), Vec::<String>::new());
        assert_eq!((after.count("process", "host"), after.count("process", "zdb")), (2, 0));
        assert_eq!(before.to_string(), "1 link lo\n1 process hostd\n1 process zdb\n");
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".hidden")).unwrap();
        std::fs::write(folder.path().join(".hidden/a b"), "").unwrap();
        let mut look = Command::new("/bin/bash");
        let output = look.args(["-c", LIST, "holdings"]).arg(folder.path()).output().unwrap();
        let found = Holdings::read(&String::from_utf8(output.stdout).unwrap());
        let file = folder.path().join(".hidden/a b");
        assert_eq!(found.count("file", file.to_str().unwrap()), 1);
        assert_eq!(found.count("file", folder.path().to_str().unwrap()), 2);
        assert!(found.count("mount", "/proc") >= 1, "{found}");
        assert!(found.count("process", "") >= 1, "{found}");
    }
}
