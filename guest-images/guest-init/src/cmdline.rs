//! The kernel command line, as far as the guest's init obeys it.
//!
//! The host writes `rw … root=vroot rootfstype=virtiofs rootdelay=30` (`reference/zero-os.md` 4.7).
//! Words that are not ours belong to the kernel or to the guest's own init and are passed over in
//! silence. Of repeated words the last one counts, as with the kernel.
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `root=TAG` | tag of the virtio-fs device with the root | `vroot` |
//! | `rootfstype=virtiofs` | the only kind there is | `virtiofs` |
//! | `rootdelay=S` | seconds to wait for devices that are late | 30 |
//! | `init=PATH` | entrypoint, unless `zosrc` names one | none |
//! | `guest.upper=` | `auto`, `disk`, `memory`, `none`: see [`Upper`] | `auto` |
//! | `guest.limit=S` | seconds until a boot that has not ended is given up | 120 |
//! | `guest.modules=TAG` | virtio-fs share to see as `/lib/modules/RELEASE` | none |
//! | `guest.trace` | say each step with its time | silent |

use std::time::Duration;

/// What the guest's init reads from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// Tag of the virtio-fs device that carries the root.
    pub root_tag: String,
    /// Entrypoint named by `init=`, with the words after `--` as its arguments.
    pub init: Option<Vec<String>>,
    /// How long to wait for devices that are late.
    pub root_delay: Duration,
    /// Where the root keeps what is written to it.
    pub upper: Upper,
    /// After this long a boot that has not ended is given up and the machine powered off.
    pub boot_limit: Duration,
    /// Tag of a virtio-fs share with kernel modules for the root.
    pub modules_tag: Option<String>,
    /// Say each step with its time.
    pub trace: bool,
}

/// Where the root keeps what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// On the disk with the serial `rootfs` if there is one, else in memory.
    Auto,
    /// On the disk with the serial `rootfs`; the boot fails without it.
    Disk,
    /// In memory: gone with the machine.
    Memory,
    /// No overlay: the virtio-fs share is writable itself.
    None,
}

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A word of ours has a value that means nothing.
    #[error("kernel command line: {key}={value:?}: expected {expected}")]
    Value {
        /// The word before `=`.
        key: &'static str,
        /// What stood after it.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
}

impl CommandLine {
    /// Parses the text of `/proc/cmdline`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] when one of the words in the module's table has an unusable value.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut line = Self::default();
        let mut init: Option<String> = None;
        let mut words = split_words(text).into_iter();
        for word in words.by_ref() {
            if word == "--" {
                break;
            }
            let (key, value) = word.split_once('=').unwrap_or((&word, ""));
            match key {
                "root" => line.root_tag = tag("root", value)?,
                "rootfstype" if value != "virtiofs" => {
                    return Err(bad("rootfstype", value, "virtiofs"));
                }
                "rootdelay" => line.root_delay = seconds("rootdelay", value)?,
                "init" if !value.is_empty() => init = Some(value.to_owned()),
                "guest.upper" => line.upper = upper(value)?,
                "guest.limit" => line.boot_limit = seconds("guest.limit", value)?,
                "guest.trace" => line.trace = true,
                "guest.modules" => line.modules_tag = Some(tag("guest.modules", value)?),
                _ => {}
            }
        }
        line.init = init.map(|path| std::iter::once(path).chain(words).collect());
        Ok(line)
    }
}

impl Default for CommandLine {
    fn default() -> Self {
        Self {
            root_tag: "vroot".to_owned(),
            init: None,
            root_delay: Duration::from_secs(30),
            upper: Upper::Auto,
            boot_limit: Duration::from_secs(120),
            modules_tag: None,
            trace: false,
        }
    }
}

/// Splits at blanks that no double quote encloses, and drops the quotes, as the kernel's
/// `next_arg` does.
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn bad(key: &'static str, value: &str, expected: &'static str) -> Error {
    Error::Value { key, value: value.to_owned(), expected }
}

/// A virtio-fs tag: 1 to 36 bytes (virtio 1.3 §5.11.4), none of them special to a mount.
fn tag(key: &'static str, value: &str) -> Result<String, Error> {
    let usable = |c: char| c.is_ascii_graphic() && c != ',' && c != '/';
    if value.is_empty() || value.len() > TAG_BYTES_MAX || !value.chars().all(usable) {
        return Err(bad(key, value, "a virtio-fs tag of 1 to 36 letters"));
    }
    Ok(value.to_owned())
}

fn seconds(key: &'static str, value: &str) -> Result<Duration, Error> {
    match value.parse::<u64>() {
        Ok(n) if n <= WAIT_SECONDS_MAX => Ok(Duration::from_secs(n)),
        _ => Err(bad(key, value, "whole seconds, at most 3600")),
    }
}

fn upper(value: &str) -> Result<Upper, Error> {
    match value {
        "auto" => Ok(Upper::Auto),
        "disk" => Ok(Upper::Disk),
        "memory" => Ok(Upper::Memory),
        "none" => Ok(Upper::None),
        _ => Err(bad("guest.upper", value, "auto, disk, memory or none")),
    }
}

/// Longest virtio-fs tag, in bytes (virtio 1.3 §5.11.4).
const TAG_BYTES_MAX: usize = 36;
/// Longest wait that a command line may ask for, in seconds.
const WAIT_SECONDS_MAX: u64 = 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_writes_is_understood() {
        let text = "rw console=ttyS0 reboot=k panic=1 boot.shell_on_fail root=vroot \
                    rootfstype=virtiofs rootdelay=30\n";
        assert_eq!(CommandLine::parse(text), Ok(CommandLine::default()));
    }

    #[test]
    fn our_own_words_are_read() {
        let text = "root=other rootdelay=5 guest.upper=memory guest.limit=9 guest.modules=kmod \
                    guest.trace";
        let line = CommandLine::parse(text).unwrap();
        assert_eq!(line.root_tag, "other");
        assert_eq!(line.root_delay, Duration::from_secs(5));
        assert_eq!(line.upper, Upper::Memory);
        assert_eq!(line.boot_limit, Duration::from_secs(9));
        assert_eq!(line.modules_tag.as_deref(), Some("kmod"));
        assert!(line.trace);
    }

    #[test]
    fn init_takes_the_words_after_two_dashes() {
        let line = CommandLine::parse("init=/sbin/zinit quiet -- init \"a b\"").unwrap();
        assert_eq!(line.init.unwrap(), ["/sbin/zinit", "init", "a b"]);
        assert_eq!(CommandLine::parse("quiet -- init").unwrap().init, None);
    }

    #[test]
    fn the_last_of_repeated_words_counts() {
        assert_eq!(CommandLine::parse("root=a root=b").unwrap().root_tag, "b");
    }

    #[test]
    fn quotes_keep_blanks_together() {
        assert_eq!(split_words(" a \"b c\"=d  e=\"f g\" \""), ["a", "b c=d", "e=f g"]);
    }

    #[test]
    fn bad_values_are_named() {
        for (text, want) in [
            ("root=", "root=\"\""),
            ("root=a,b", "root=\"a,b\""),
            ("root=/dev/vda", "root=\"/dev/vda\""),
            ("rootfstype=ext4", "rootfstype=\"ext4\""),
            ("rootdelay=-1", "rootdelay=\"-1\""),
            ("rootdelay=99999999999999999999", "rootdelay="),
            ("guest.upper=ram", "auto, disk, memory or none"),
        ] {
            let message = CommandLine::parse(text).unwrap_err().to_string();
            assert!(message.contains(want), "{text}: {message}");
        }
    }
}
