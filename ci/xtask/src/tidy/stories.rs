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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::{member, workspace};

    #[test]
    fn a_file_without_a_story_is_named() {
        let files = [
            ("src/lib.rs", "//! A story.\n"),
            ("src/a.rs", "use std::fs;\n"),
            ("src/b.rs", "//!\n"),
        ];
        let broken = check(&workspace(vec![member("x", &files, &[])]));
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].starts_with("x/src/a.rs:1: ") && broken[1].starts_with("x/src/b.rs:1: "));
    }

    #[test]
    fn a_file_that_outgrew_a_reader_is_named() {
        let long = "//! A story.\n".to_owned() + &"// More.\n".repeat(LINE_COUNT_MAX);
        let broken = check(&workspace(vec![member("x", &[("src/lib.rs", &long)], &[])]));
        assert_eq!(broken, ["x/src/lib.rs: 1001 lines, at most 1000"]);
    }
}
