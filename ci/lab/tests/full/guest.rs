//! A guest of a node: what it is, and the script that it runs.

use std::time::Duration;

use lab::{Outcome, Running};

use crate::guest_files::write_cidata;
use crate::node::Node;

/// How long a guest may take from the start of its VMM to its end.
pub(crate) const GUEST_LIMIT: Duration = Duration::from_secs(600);
/// Where the VMM of a guest listens.
pub(crate) const SOCKET: &str = "/run/vm.sock";
/// The address of a guest's card, which its `cidata` gives 10.20.2.5.
pub(crate) const MAC: &str = "02:01:a0:00:00:09";
const WORDS: &str = "console=hvc0 quiet panic=-1 cryptomgr.notests no_timer_check root=vroot \
                     rootfstype=virtiofs rootdelay=10 rw";

/// A guest to be started.
pub(crate) struct Guest<'a> {
    pub(crate) cpus: &'a str,
    pub(crate) memory: &'a str,
    pub(crate) kernel: &'a str,
    /// More words for its kernel.
    pub(crate) words: &'a str,
    /// Where writes to the image go: `,upper=DIR`, or nothing.
    pub(crate) upper: &'a str,
    /// Disks before the last, which is `cidata`.
    pub(crate) disks: &'a [&'a str],
    /// More options of `vmm run`.
    pub(crate) options: &'a [&'a str],
}

impl Default for Guest<'_> {
    fn default() -> Self {
        let (cpus, memory, kernel) = ("1", "512M", "/vmlinux");
        Self { cpus, memory, kernel, words: "", upper: "", disks: &[], options: &[] }
    }
}

impl Guest<'_> {
    /// Starts it on `node`, to run `script` as its init.
    pub(crate) fn start(&self, node: &Node, script: &str) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let cidata = folder.path().join("cidata.img");
        let script = format!("{PROLOGUE}{script}");
        let quoted = script.replace('\'', r"'\''");
        let zosrc = format!("init='/bin/sh'\nset -- '-c' '{quoted}'\n");
        write_cidata(&cidata, "users: []\nmounts:\n- [tools, /tools, virtiofs, ro]\n", &zosrc);
        let image = format!("/run/cidata-{}.img", node.next());
        node.machine.push(&image, 0o600, &std::fs::read(&cidata).unwrap()).unwrap();

        let words = format!("{WORDS} {}", self.words);
        let root = format!("tag=vroot,flist={},cache=/run/cache.sock{}", node.image, self.upper);
        let last = format!("{image},readonly");
        let mut run = vec!["/vmm", "run", "--console", "stdio", "--api-socket", SOCKET];
        run.extend(["--kernel", self.kernel, "--initramfs", "/initramfs.img", "--cmdline", &words]);
        run.extend(["--cpus", self.cpus, "--memory", self.memory, "--fs", &root]);
        run.extend(["--fs", "tag=tools,dir=/tools,readonly"]);
        self.disks
            .iter()
            .copied()
            .chain([last.as_str()])
            .for_each(|disk| run.extend(["--disk", disk]));
        run.extend(self.options);
        node.machine.command(&run).timeout(GUEST_LIMIT).spawn().unwrap()
    }

    /// Runs it to the end of `script`, which must go well, and returns what it said.
    pub(crate) fn run(&self, node: &Node, script: &str) -> String {
        finish(self.start(node, script))
    }
}

/// Waits until a guest has said something.
pub(crate) fn said(running: Running, what: &str) -> Running {
    if let Err(error) = running.wait_for(what, GUEST_LIMIT) {
        // It may have ended long ago.
        let _ = running.signal(9);
        let output = running.wait().map(|output| {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("{:?}\n{}\n{errors}", output.outcome, output.text())
        });
        panic!("the guest did not say {what:?}: {error}\n{}", output.unwrap_or_default());
    }
    running
}

/// Waits for the end of a guest whose script must go well, and returns what it said.
pub(crate) fn finish(running: Running) -> String {
    let text = end(running, &Outcome::Exited(0));
    assert!(text.contains("script: ended with 0"), "the script failed:\n{text}");
    text
}

/// Waits for the end of a VMM, and returns what its guest said.
pub(crate) fn end(running: Running, outcome: &Outcome) -> String {
    let output = running.wait().unwrap();
    let (text, errors) = (output.text(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(&output.outcome, outcome, "{text}\n{errors}");
    text
}

/// The value of the line `KEY: VALUE`.
pub(crate) fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("nothing about {key}:\n{text}"))
}

/// What every script begins with: its end is the machine's, `fio` says only what went wrong, and where
/// something did, so does the kernel. `now` is in hundredths of a second.
const PROLOGUE: &str = r#"
trap 'status=$?; [ $status = 0 ] || dmesg | tail -n 30; echo "script: ended with $status"; /tools/agent power off; sleep 1000' EXIT
set -eu
now() { read up rest < /proc/uptime; echo "${up%.*}${up#*.}"; }
await() { n=0; until eval "$1"; do n=$((n+1)); [ $n -lt 1200 ] || { echo "in vain: $1"; exit 9; }; sleep 0.1; done; }
check() { fio --eta=never --output=/tmp/fio --verify_fatal=1 --randrepeat=1 "$@" || { cat /tmp/fio; return 1; }; }
"#;
