//! No dead files: every Rust file is a target of its crate or a module of one, and every folder with
//! a manifest is a member.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Crate, SourceFile, Workspace};

pub(super) fn check(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let mut broken: Vec<String> = workspace.crates.iter().flat_map(dead_files).collect();
    let listed: BTreeSet<&Path> =
        workspace.crates.iter().map(|member| member.folder.as_path()).collect();
    for folder in folders_with_manifest(&workspace.root)? {
        // The fuzz targets are a workspace of their own: they need a fuzzer's runtime to link.
        if !listed.contains(folder.as_path()) && !folder.starts_with("ci/fuzz") {
            broken.push(format!("{}: a crate that is not a member", folder.display()));
        }
    }
    Ok(broken)
}

fn dead_files(member: &Crate) -> Vec<String> {
    let mut alive = BTreeSet::new();
    for file in member.files.iter().filter(|file| is_target(member, &file.path)) {
        follow(member, file, &file.path, &mut alive);
    }
    let dead = member.files.iter().filter(|file| !alive.contains(&file.path));
    dead.map(|file| format!("{}: no target or module reaches it", file.path.display())).collect()
}

/// Whether cargo would build this file as a target of its own.
fn is_target(member: &Crate, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(&member.folder) else { return false };
    let depth = inside.components().count();
    let root =
        ["src/lib.rs", "src/main.rs", "build.rs"].iter().any(|name| inside == Path::new(name));
    let single =
        ["tests", "examples", "benches"].iter().any(|name| inside.starts_with(name)) && depth == 2;
    let own_folder = inside.ends_with("main.rs") && depth == 3;
    let binary = inside.starts_with("src/bin");
    root || single || own_folder || binary
}

/// Marks `file` and every module below it. `as_path` is where the compiler thinks it stands.
fn follow(member: &Crate, file: &SourceFile, as_path: &Path, alive: &mut BTreeSet<PathBuf>) {
    if !alive.insert(file.path.clone()) {
        return;
    }
    let stem = as_path.file_stem().unwrap_or_default();
    let folder = as_path.parent().unwrap_or_else(|| Path::new(""));
    let owns_folder = stem == "mod" || is_target(member, as_path);
    let below = if owns_folder { folder.to_owned() } else { folder.join(stem) };
    for (name, given) in modules(&file.syntax.items) {
        let candidates = match given {
            Some(path) => vec![folder.join(path)],
            None => vec![below.join(format!("{name}.rs")), below.join(&name).join("mod.rs")],
        };
        for candidate in candidates.iter().map(|path| normal(path)) {
            if let Some(file) = member.files.iter().find(|file| file.path == candidate) {
                follow(member, file, &candidate, alive);
            }
        }
    }
}

/// Modules declared without a body: name, and the path of a `#[path]` attribute.
fn modules(items: &[syn::Item]) -> Vec<(String, Option<String>)> {
    let declared = items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() => Some(module),
        _ => None,
    });
    declared.map(|module| (module.ident.to_string(), path_attribute(&module.attrs))).collect()
}

fn path_attribute(attributes: &[syn::Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    let value = &attribute.meta.require_name_value().ok()?.value;
    match value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

/// The path without `..` components.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        match component {
            std::path::Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
        normal
    })
}

fn folders_with_manifest(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
                pending.push(path);
            } else if name == "Cargo.toml" && folder != root {
                found.push(folder.strip_prefix(root)?.to_owned());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::member;

    #[test]
    fn modules_are_followed_from_every_target() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "mod inner;"),
            ("src/a/inner.rs", ""),
            ("src/b/mod.rs", "mod deep;"),
            ("src/b/deep.rs", ""),
            ("tests/one.rs", "mod common;"),
            ("tests/common/mod.rs", ""),
            ("tests/two/main.rs", "mod part;"),
            ("tests/two/part.rs", ""),
        ];
        assert_eq!(dead_files(&member("x", &files, &[])), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_nothing_reaches_is_named() {
        let files = [("src/lib.rs", "mod a;"), ("src/a.rs", ""), ("src/left.rs", "")];
        let expected = ["x/src/left.rs: no target or module reaches it"];
        assert_eq!(dead_files(&member("x", &files, &[])), expected);
    }
}
