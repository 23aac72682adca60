//! No function outgrows a screen.
//!
//! A ratchet: functions that are longer all the same are named in `long-functions.txt` beside this
//! crate's manifest. A new one breaks the rule; one that became short, or is gone, must leave the
//! list, so the list only shrinks.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Context;
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::source::{SourceFile, Workspace};

/// Lines of one screen.
const LINE_COUNT_MAX: usize = 70;
const LIST: &str = "ci/xtask/long-functions.txt";

pub(super) fn check(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let list = fs::read_to_string(workspace.root.join(LIST)).context(LIST)?;
    let known: BTreeSet<&str> =
        list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let files = workspace.crates.iter().flat_map(|member| &member.files);
    let long: Vec<(String, usize)> = files.flat_map(long_functions).collect();
    let mut broken: Vec<String> = long
        .iter()
        .filter(|(name, _)| !known.contains(name.as_str()))
        .map(|(name, lines)| format!("{name}: {lines} lines, at most {LINE_COUNT_MAX}"))
        .collect();
    let gone = known.iter().filter(|name| !long.iter().any(|(long, _)| long == *name));
    broken.extend(gone.map(|name| format!("{LIST}: {name} is short now, or gone: take it out")));
    Ok(broken)
}

/// `path::function` and lines of each function that is too long.
fn long_functions(file: &SourceFile) -> Vec<(String, usize)> {
    let mut visitor = Visitor { found: Vec::new() };
    visitor.visit_file(&file.syntax);
    let named = |(name, lines)| (format!("{}::{name}", file.path.display()), lines);
    visitor.found.into_iter().map(named).collect()
}

struct Visitor {
    found: Vec<(String, usize)>,
}

impl Visitor {
    fn measure(&mut self, name: &syn::Ident, from: Span, to: Span) {
        let lines = to.end().line - from.start().line + 1;
        if lines > LINE_COUNT_MAX {
            self.found.push((name.to_string(), lines));
        }
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure(&function.sig.ident, function.sig.span(), function.block.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure(&function.sig.ident, function.sig.span(), function.block.span());
        visit::visit_impl_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::member;

    #[test]
    fn long_functions_are_found_wherever_they_stand() {
        let body = "    let _ = 1;\n".repeat(LINE_COUNT_MAX);
        let text = format!(
            "fn long() {{\n{body}}}\nfn short() {{}}\nstruct S;\nimpl S {{\nfn method() {{\n{body}}}\n}}\n"
        );
        let member = member("x", &[("src/lib.rs", &text)], &[]);
        let found = long_functions(&member.files[0]);
        let expected =
            [("x/src/lib.rs::long".to_owned(), 72), ("x/src/lib.rs::method".to_owned(), 72)];
        assert_eq!(found, expected);
    }
}
