//! From the initramfs into the root, and the start of its init.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::mount_move;
use rustix::process::chroot;

use crate::entry::Entry;

/// Makes the mount at `new_root` the root of everything, and frees the initramfs.
pub(crate) fn switch_root(new_root: &str) -> Result<()> {
    let device = std::fs::metadata("/")?.dev();
    empty_folder(Path::new("/"), device);
    std::env::set_current_dir(new_root)?;
    mount_move(".", "/").context("moving the root into place")?;
    chroot(".").context("entering the root")?;
    Ok(std::env::set_current_dir("/")?)
}

/// Removes what is in `folder` on `device`; mounts are on others. It only frees memory, so what
/// can't be removed stays.
fn empty_folder(folder: &Path, device: u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            empty_folder(&path, device);
            let _ = std::fs::remove_dir(&path);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Makes ssh host keys, if there are none and the image has `ssh-keygen`. Called inside the root.
pub(crate) fn make_host_keys() -> Result<()> {
    let names = std::fs::read_dir("/etc/ssh").into_iter().flatten();
    let mut names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_key = |name: String| name.starts_with("ssh_host_") && name.ends_with("_key");
    if !Path::new(SSH_KEYGEN).exists() || names.any(is_key) {
        return Ok(());
    }
    std::fs::create_dir_all("/etc/ssh")?;
    let mut child = Command::new(SSH_KEYGEN)
        .arg("-A")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {SSH_KEYGEN}"))?;
    let started = Instant::now();
    while started.elapsed() < KEYGEN_LIMIT {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(()) } else { Err(anyhow!("ssh-keygen: {status}")) };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    bail!("ssh-keygen was not done after {} s", KEYGEN_LIMIT.as_secs())
}

/// Becomes the guest's init. Returns only the reason why it can't be.
pub(crate) fn start(entry: &Entry) -> anyhow::Error {
    match try_start(entry) {
        Ok(never) => match never {},
        Err(error) => {
            let program = entry.argv.first().map_or("", String::as_str);
            error.context(format!("cannot start {program:?} ({})", entry.chosen_by))
        }
    }
}

fn try_start(entry: &Entry) -> Result<std::convert::Infallible> {
    let candidates = entry.candidates();
    if std::env::set_current_dir(&entry.dir).is_err() {
        bail!("the image has no folder {:?} to start it in", entry.dir);
    }
    let Some(path) = candidates.iter().find(|path| Path::new(path).exists()) else {
        bail!("the image has no {}", candidates.join(", "));
    };
    if Path::new(path).is_dir() {
        bail!("{path} is a folder");
    }
    let mut command = Command::new(path);
    if let Some((program, args)) = entry.argv.split_first() {
        command.arg0(program).args(args);
    }
    let env = entry.env.iter().map(|(name, value)| (name, value));
    let error = command.env_clear().envs(env).exec();
    Err(match error.kind() {
        // It exists, so it is what runs it that doesn't.
        std::io::ErrorKind::NotFound => match interpreter(path) {
            Some(name) => anyhow!("its interpreter {name:?} is not in the image"),
            None => anyhow!("its program loader is not in the image"),
        },
        _ => anyhow!("{path}: {error}"),
    })
}

/// The program behind `#!` in a script.
fn interpreter(path: &str) -> Option<String> {
    let mut start = [0; 256];
    let file = std::fs::File::open(path).ok()?;
    let length = std::os::unix::fs::FileExt::read_at(&file, &mut start, 0).ok()?;
    let text = String::from_utf8_lossy(start.get(..length)?).into_owned();
    Some(text.strip_prefix("#!")?.split_whitespace().next()?.to_owned())
}

const SSH_KEYGEN: &str = "/usr/bin/ssh-keygen";
/// Longest time that keys may take to be made.
const KEYGEN_LIMIT: Duration = Duration::from_secs(60);
