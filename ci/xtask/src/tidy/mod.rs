//! The rules, one room each; every check returns a line for each broken rule.

mod files;
mod functions;
mod graph;
mod stories;

use std::path::Path;

use crate::source::Workspace;

/// Checks every rule on the repository at `root`.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let workspace = Workspace::read(root)?;
    let mut broken = stories::check(&workspace);
    broken.extend(graph::check(&workspace));
    broken.extend(functions::check(&workspace)?);
    broken.extend(files::check(&workspace)?);
    Ok(broken)
}
