//! The disk by which a node tells a guest who it is: a small FAT file system with a label.
//!
//! Guests look for the label `CIDATA`, and for `meta-data`, `user-data`, `network-config` and `zosrc`
//! in it, none of which must be there. A node writes such disks itself; the lab has `mkfs.vfat` and
//! `mcopy` do it, so that nothing of ours is on both sides of a test.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::error::LabError;

/// Size of the disk: a FAT file system can't be much smaller.
const IMAGE_SIZE: u64 = 2 << 20;

/// Writes such a disk to `image`, with `files` by name and contents. One that is there is replaced.
///
/// # Errors
///
/// [`LabError::Io`] when a file can't be written or a program not be started,
/// [`LabError::Program`] with what the program said when it fails.
pub fn write_cidata(image: &Path, files: &[(&str, &str)]) -> Result<(), LabError> {
    // Truncated: nothing of an earlier one is left behind the new file system.
    let file = File::create(image).map_err(LabError::io("create", image))?;
    file.set_len(IMAGE_SIZE).map_err(LabError::io("give its size to", image))?;
    run(Command::new("/sbin/mkfs.vfat").args(["-n", "CIDATA"]).arg(image))?;
    let folder = tempfile::tempdir().map_err(LabError::io("make a folder for", image))?;
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::write(&path, text).map_err(LabError::io("write", &path))?;
        run(Command::new("mcopy").arg("-i").arg(image).arg(&path).arg("::"))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<(), LabError> {
    let program = Path::new(command.get_program()).to_path_buf();
    let output = command.output().map_err(LabError::io("run", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Program { path: program, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_labelled_and_has_its_files_and_a_failure_names_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("cidata.img");
        write_cidata(&image, &[("zosrc", "init='old'\n"), ("gone", "")]).unwrap();
        write_cidata(&image, &[("zosrc", "init='new'\n")]).unwrap();
        let bytes = fs::read(&image).unwrap();
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert_eq!(bytes.len() as u64, IMAGE_SIZE);
        assert!(has(b"CIDATA     ") && has(b"init='new'") && !has(b"init='old'"));
        let missing = folder.path().join("none/cidata.img");
        let error = write_cidata(&missing, &[]).unwrap_err().to_string();
        assert!(error.contains("none/cidata.img"), "{error}");
        let error = run(Command::new("mcopy").arg("-i").arg(&missing).arg("x").arg("::"));
        assert!(error.unwrap_err().to_string().starts_with("program mcopy: "));
    }
}
