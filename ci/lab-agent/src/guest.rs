//! PID 1 of a guest above a lab machine: does what its command line says, then switches off.
//!
//! A VMM's guest has no port to the lab, and needs none: `lab.run=` on its kernel's command line names
//! the tools of this binary to run, words divided by commas, tools by semicolons:
//!
//! ```text
//! lab.run=address,eth0,10.9.0.2/24;send,10.9.0.1:7,1048576,checked
//! ```
//!
//! What they print goes to the console; the first that fails is the last.

use anyhow::{Context, Result};

/// The word on the command line.
const WORD: &str = "lab.run=";

/// The tools to run, if this is such a guest.
pub(crate) fn commands() -> Option<Vec<Vec<String>>> {
    parse(&std::fs::read_to_string("/proc/cmdline").ok()?)
}

/// Runs them.
pub(crate) fn run(commands: &[Vec<String>]) -> Result<String> {
    for command in commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        crate::tool(&words).with_context(|| command.join(" "))?;
    }
    Ok("done".to_owned())
}

fn parse(cmdline: &str) -> Option<Vec<Vec<String>>> {
    let text = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(WORD))?;
    let words = |command: &str| command.split(',').map(str::to_owned).collect();
    Some(text.split(';').filter(|command| !command.is_empty()).map(words).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_divided_by_semicolons_and_their_words_by_commas() {
        let parsed = parse("quiet lab.run=disks;sleep,10; panic=1\n").unwrap();
        assert_eq!(parsed, [vec!["disks".to_owned()], vec!["sleep".to_owned(), "10".to_owned()]]);
        assert_eq!(parse("quiet"), None);
        assert_eq!(parse("lab.run="), Some(Vec::new()));
    }
}
