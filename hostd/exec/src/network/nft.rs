//! Loading rules: the `nft` program, in the namespace of the calling thread, with JSON on its input.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::program;

/// Its input, by a name that needs no `/dev/stdin`, which `-` stands for.
const INPUT: &str = "/proc/self/fd/0";

/// Loads rules as one transaction.
pub(super) fn load(nft: &Path, rules: &Value) -> io::Result<()> {
    program::run(nft, &["-j", "-f", INPUT], &rules.to_string()).map(drop)
}

/// Asks for something, in JSON.
pub(super) fn list(nft: &Path, what: &[&str]) -> io::Result<Value> {
    let arguments: Vec<&str> = ["-j", "list"].iter().chain(what).copied().collect();
    let answer = program::run(nft, &arguments, "")?;
    serde_json::from_str(&answer)
        .map_err(|error| io::Error::other(format!("nft answers no JSON: {error}")))
}
