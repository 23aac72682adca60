//! A program of this host, with the libraries it needs, for a machine that has none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::LabError;

/// The files that a program needs, the program itself included: path in the machine, which is
/// the path here.
pub(crate) fn closure(program: &Path) -> Result<BTreeMap<String, PathBuf>, LabError> {
    let failed = |reason: String| LabError::Program { path: program.to_path_buf(), reason };
    if !program.is_absolute() || !program.is_file() {
        return Err(failed("expected the absolute path of a file".to_owned()));
    }
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output();
    let output = output.map_err(|error| failed(format!("ldd: {error}")))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let is_static = stderr.contains("not a dynamic") || stdout.contains("statically linked");
    if !output.status.success() && !is_static {
        return Err(failed(format!("ldd: {}", stderr.trim())));
    }
    let mut files = libraries(&stdout).map_err(failed)?;
    files.push(program.to_path_buf());
    Ok(files.into_iter().map(|path| (path.to_string_lossy().into_owned(), path)).collect())
}

/// Reads lines of `name => /path (address)` and `/path (address)`.
fn libraries(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in text.lines() {
        if line.contains("=> not found") {
            return Err(format!("library is missing here: {}", line.trim()));
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = path.split_once(" (").map_or(path, |(path, _)| path);
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(text).unwrap(), expected.map(PathBuf::from));
        assert!(libraries("\tlibx.so => not found\n").unwrap_err().contains("libx.so"));
        assert_eq!(libraries("\tstatically linked\n"), Ok(Vec::new()));
    }

    #[test]
    fn a_dynamic_program_brings_its_loader() {
        let files = closure(Path::new("/bin/sh")).unwrap();
        assert!(files.contains_key("/bin/sh"));
        assert!(files.keys().any(|path| path.contains("ld-linux")), "{files:?}");
        assert!(closure(Path::new("/no/such")).is_err());
    }
}
