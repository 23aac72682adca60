//! Every Rust file opens with its story, and none outgrows a reader.

use crate::source::{SourceFile, Workspace};

/// Lines after which a file must have found its second noun.
const LINE_COUNT_MAX: usize = 1000;

pub(super) fn check(workspace: &Workspace) -> Vec<String> {
    let files = workspace.crates.iter().flat_map(|member| &member.files);
    files.flat_map(|file| [story(file), size(file)]).flatten().collect()
}

fn story(file: &SourceFile) -> Option<String> {
    let first = file.text.lines().find(|line| !line.starts_with("#!") && !line.is_empty())?;
    let told = first.starts_with("//! ") && first.len() > "//! A.".len();
    (!told).then(|| format!("{}:1: opens without its story (`//! …`)", file.path.display()))
}

fn size(file: &SourceFile) -> Option<String> {
    let lines = file.text.lines().count();
    (lines > LINE_COUNT_MAX)
        .then(|| format!("{}: {lines} lines, at most {LINE_COUNT_MAX}", file.path.display()))
}
