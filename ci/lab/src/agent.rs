//! The agent's static binary: built by cargo when a lab first needs it.
//!
//! The build has a target folder of its own in the cache: its flags are others than the
//! workspace's, and a lab need not wait for a build that happens to run.
//!
//! `LAB_AGENT=/path` overrides it, for hosts that have the lab's binaries but no sources.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use boot_image::Cache;

use crate::error::LabError;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The path of the agent's binary, which is up to date with its sources.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf, LabError> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    if let Some(path) = std::env::var_os("LAB_AGENT") {
        return Ok(path.into());
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*built {
        return Ok(path.clone());
    }
    let path = build(cache)?;
    *built = Some(path.clone());
    Ok(path)
}

fn build(cache: &Cache) -> Result<PathBuf, LabError> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(&workspace)
        .args(["build", "--quiet", "--release", "--package", "lab-agent", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(cache.root().join("lab-agent"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = command.output().map_err(|error| LabError::Agent(error.to_string()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(LabError::Agent(format!("{}: {}", output.status, stderr.trim())));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages).ok_or_else(|| LabError::Agent("cargo named no executable".to_owned()))
}

/// The `executable` of cargo's last artifact message that has one.
fn executable(messages: &str) -> Option<PathBuf> {
    let parse = |line| serde_json::from_str::<serde_json::Value>(line).ok();
    let mut found = messages.lines().rev().filter_map(parse);
    found.find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_executable_of_cargos_messages_counts() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/lab-agent\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/lab-agent")));
        assert_eq!(executable("nothing"), None);
    }
}
