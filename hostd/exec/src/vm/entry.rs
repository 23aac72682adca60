//! What a guest starts, and in which environment: `zosrc`, the file that its init reads.
//!
//! The file is a shell script of three kinds of lines: `export NAME='value'`, `init='program'` and
//! `set -- 'argument'…`. Guests of other makers run it in a shell, ours reads it without one; so every
//! text stands in single quotes, in which nothing has a meaning but the end quote itself.
//!
//! The owner's command is one text that is split into words as a shell would, without expanding
//! anything. What no process can have, a NUL or a name that no shell could export, is refused before
//! anything is made: in the guest it would end the boot, and nobody would know why.

use std::collections::BTreeMap;

use hostd_grid::secret::SecretText;

use super::spec::Boot;

/// Most words of a command, and most variables.
pub const WORD_COUNT_MAX: usize = 1024;
/// Bytes of the whole file: what a guest's init reads at most is 1 MiB.
pub const SIZE_MAX: usize = 512 << 10;
/// Bytes of one value or word: Linux' `MAX_ARG_STRLEN`, with its NUL.
pub const TEXT_SIZE_MAX: usize = (128 << 10) - 1;
/// Bytes of a variable's name that an error repeats.
const NAME_SHOWN_MAX: usize = 64;

/// Why there can be no such command or environment. Values are secrets and not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A name that can't be exported.
    #[error(
        "environment: {0:?} is no variable name: letters, digits and underscores, no digit first"
    )]
    Name(String),
    /// A value with a NUL.
    #[error("environment: the value of {0} holds a NUL, which no environment can")]
    Nul(String),
    /// A value or word that is too long for the kernel.
    #[error("{0}: longer than {TEXT_SIZE_MAX} bytes, which no process can be given")]
    Long(String),
    /// Too many of them.
    #[error("{what}: {count} of them, at most {WORD_COUNT_MAX} are allowed")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// All of it together is too large.
    #[error("environment and entrypoint: {0} bytes in all, at most {SIZE_MAX} are allowed")]
    Size(usize),
    /// A quotation without end.
    #[error("entrypoint: a quotation has no end")]
    Quote,
    /// A NUL in the command.
    #[error("entrypoint: it holds a NUL, which no command can")]
    CommandNul,
}

/// The text of `zosrc`.
///
/// # Errors
/// [`EntryError`].
pub fn zosrc(env: &BTreeMap<String, SecretText>, entrypoint: &str) -> Result<String, EntryError> {
    let words = split(entrypoint)?;
    for (what, count) in [("environment variables", env.len()), ("entrypoint words", words.len())] {
        if count > WORD_COUNT_MAX {
            return Err(EntryError::Count { what, count });
        }
    }
    let mut text = String::from("#cloud-config\n");
    for (name, value) in env {
        check_variable(name, value.expose())?;
        text.push_str(&format!("export {name}={}\n", quoted(value.expose())));
    }
    if let Some((program, arguments)) = words.split_first() {
        text.push_str(&format!("init={}\n", quoted(program)));
        text.push_str("set --");
        for argument in arguments {
            text.push(' ');
            text.push_str(&quoted(argument));
        }
        text.push('\n');
    }
    if text.len() > SIZE_MAX {
        return Err(EntryError::Size(text.len()));
    }
    Ok(text)
}

/// The environment as a file for a guest that knows no `zosrc`, which is the machine of a whole disk:
/// lines `NAME="value"` that shells and systemd read alike (`systemd.exec(5)`, `EnvironmentFile=`). In
/// double quotes, backslash, dollar, backquote and the quote itself stand behind a backslash for both.
///
/// # Errors
/// [`EntryError`].
pub fn environment(
    env: &BTreeMap<String, SecretText>,
    boot: &Boot,
) -> Result<Option<SecretText>, EntryError> {
    if env.is_empty() || !matches!(boot, Boot::Disk { .. }) {
        return Ok(None);
    }
    let mut text = String::new();
    for (name, value) in env {
        check_variable(name, value.expose())?;
        text.push_str(name);
        text.push_str("=\"");
        for letter in value.expose().chars() {
            if matches!(letter, '\\' | '"' | '$' | '`') {
                text.push('\\');
            }
            text.push(letter);
        }
        text.push_str("\"\n");
    }
    Ok(Some(SecretText::new(text)))
}

fn check_variable(name: &str, value: &str) -> Result<(), EntryError> {
    let mut letters = name.chars();
    let is_first = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    let is_name = letters.next().is_some_and(is_first)
        && letters.all(|letter| is_first(letter) || letter.is_ascii_digit());
    if !is_name {
        return Err(EntryError::Name(name.chars().take(NAME_SHOWN_MAX).collect()));
    }
    let shown = || name.chars().take(NAME_SHOWN_MAX).collect::<String>();
    if value.contains('\0') {
        return Err(EntryError::Nul(shown()));
    }
    if name.len() + 1 + value.len() > TEXT_SIZE_MAX {
        return Err(EntryError::Long(format!("environment variable {}", shown())));
    }
    Ok(())
}

/// A word in single quotes: the one form in which nothing is special.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Splits a command into words: at blanks, with `'…'`, `"…"`, `\` and comments as in a shell, and
/// without its expansions.
///
/// # Errors
/// [`EntryError::Quote`] for a quotation without end, [`EntryError::CommandNul`],
/// [`EntryError::Long`].
pub fn split(text: &str) -> Result<Vec<String>, EntryError> {
    if text.contains('\0') {
        return Err(EntryError::CommandNul);
    }
    let mut words = Vec::new();
    // `Some` between the first character of a word, which may be a quote, and the blank behind it.
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => read_single(&mut letters, word.get_or_insert_default())?,
            '"' => read_double(&mut letters, word.get_or_insert_default())?,
            '\\' => {
                let escaped = letters.next().ok_or(EntryError::Quote)?;
                // A line that is continued.
                if escaped != '\n' {
                    word.get_or_insert_default().push(escaped);
                }
            }
            '#' if word.is_none() => {
                let _ = letters.by_ref().find(|letter| *letter == '\n');
            }
            letter if letter.is_ascii_whitespace() => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    match words.iter().find(|word| word.len() > TEXT_SIZE_MAX) {
        Some(_) => Err(EntryError::Long("entrypoint: a word".to_owned())),
        None => Ok(words),
    }
}

fn read_single(
    letters: &mut impl Iterator<Item = char>,
    word: &mut String,
) -> Result<(), EntryError> {
    loop {
        match letters.next().ok_or(EntryError::Quote)? {
            '\'' => return Ok(()),
            letter => word.push(letter),
        }
    }
}

fn read_double(
    letters: &mut impl Iterator<Item = char>,
    word: &mut String,
) -> Result<(), EntryError> {
    loop {
        match letters.next().ok_or(EntryError::Quote)? {
            '"' => return Ok(()),
            '\\' => match letters.next().ok_or(EntryError::Quote)? {
                '\n' => {}
                letter @ ('"' | '\\' | '$' | '`') => word.push(letter),
                letter => word.extend(['\\', letter]),
            },
            letter => word.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, SecretText> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), SecretText::new(*value))).collect()
    }

    #[test]
    fn commands_are_split_as_a_shell_would() {
        for (text, words) in [
            ("", &[][..]),
            ("  /sbin/zinit init\t", &["/sbin/zinit", "init"]),
            (r#"sh -c 'a "b" c'"#, &["sh", "-c", r#"a "b" c"#]),
            (r#"x "it's" '' "" "#, &["x", "it's", "", ""]),
            (r#"a\ b "c\"d\n\\" e'f'g"#, &["a b", r#"c"d\n\"#, "efg"]),
            ("run # not this\n but this#too", &["run", "but", "this#too"]),
            ("a\\\nb", &["ab"]),
            ("$HOME `id` *", &["$HOME", "`id`", "*"]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        for text in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(split(text), Err(EntryError::Quote), "{text}");
        }
        assert_eq!(split("a\0b"), Err(EntryError::CommandNul));
    }

    #[test]
    fn a_shell_reads_the_environment_of_a_whole_disk_as_it_was_meant() {
        let disk = Boot::Disk { folder: "/b".into() };
        let value = "it's \"two\"\nlines $HOME `id` \\ \\n !";
        let text = environment(&env(&[("A", value), ("B", "")]), &disk).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("environment");
        std::fs::write(&file, text.expose()).unwrap();
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "set -a; . \"$0\"; printf '%s|%s' \"$A\" \"$B\""]).arg(&file);
        let said = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        assert_eq!(said, format!("{value}|"));
        assert_eq!(environment(&env(&[]), &disk), Ok(None));
        let node = Boot::Node { root: "/r".into() };
        assert_eq!(environment(&env(&[("A", "x")]), &node), Ok(None));
        assert!(environment(&env(&[("A-", "x")]), &disk).is_err());
    }

    #[test]
    fn values_are_quoted_whatever_they_hold() {
        let env = env(&[("A", "it's\n$HOME `id` \\"), ("_b2", "")]);
        let text = zosrc(&env, "/bin/sh -c 'echo hi'").unwrap();
        let expected = "#cloud-config\nexport A='it'\\''s\n$HOME `id` \\'\nexport _b2=''\n\
                        init='/bin/sh'\nset -- '-c' 'echo hi'\n";
        assert_eq!(text, expected);
        assert_eq!(zosrc(&BTreeMap::new(), " ").unwrap(), "#cloud-config\n");
    }

    #[test]
    fn what_no_guest_can_have_is_refused_by_name_and_without_the_value() {
        for (name, value, expected) in [
            ("A-B", "s3cr3t", "environment: \"A-B\" is no variable name"),
            ("1A", "s3cr3t", "environment: \"1A\" is no variable name"),
            ("", "s3cr3t", "environment: \"\" is no variable name"),
            ("A\n", "s3cr3t", "environment: \"A\\n\" is no variable name"),
            ("A", "s3cr3t\0", "the value of A holds a NUL"),
            ("A", &"s3cr3t".repeat(30_000), "environment variable A: longer than"),
        ] {
            let error = zosrc(&env(&[(name, value)]), "").unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("s3cr3t"), "{error}");
        }
        let many: BTreeMap<_, _> = (0..=WORD_COUNT_MAX)
            .map(|index| (format!("A{index}"), SecretText::default()))
            .collect();
        assert!(matches!(zosrc(&many, ""), Err(EntryError::Count { .. })));
        let large: BTreeMap<_, _> = (0..5)
            .map(|index| (format!("A{index}"), SecretText::new("x".repeat(120_000))))
            .collect();
        assert!(matches!(zosrc(&large, ""), Err(EntryError::Size(_))));
    }
}
