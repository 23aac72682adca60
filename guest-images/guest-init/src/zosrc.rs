//! `zosrc`: the workload's environment and entrypoint, written by the node as a shell script.
//!
//! The node writes `export K='v'` for each variable, `init='argv0'`, and `set -- 'arg'…`
//! (`reference/zero-os.md` 4.7). We have no shell and want none, so this module reads exactly that
//! much of the POSIX shell's grammar: assignments of constant words. Quotes (`'…'`, `"…"`, `\`),
//! comments, `;` and line continuations are honoured; anything that a shell would expand or run
//! (`$`, backquote, `&`, `|`, redirections, globs, commands) is refused by name and line. Nothing
//! is ever run.

/// What a `zosrc` file says.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Zosrc {
    /// Exported variables in the order of their first mention; the last value counts.
    pub env: Vec<(String, String)>,
    /// The entrypoint's program, if one is named.
    pub init: Option<String>,
    /// The entrypoint's arguments.
    pub args: Vec<String>,
}

/// Names only: values are the workload's secrets.
impl std::fmt::Debug for Zosrc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Zosrc")
            .field("env", &names)
            .field("init", &self.init)
            .finish_non_exhaustive()
    }
}

/// Why a `zosrc` was refused. No message repeats a value: it may be a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("zosrc line {line}: {kind}")]
pub struct Error {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub kind: ErrorKind,
}

/// What can be wrong with a line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ErrorKind {
    /// A shell would expand or run this; we don't.
    #[error("{0:?} outside quotes is shell syntax that is not supported here")]
    Syntax(char),
    /// Same, inside double quotes.
    #[error("{0:?} inside double quotes is an expansion, which is not supported here")]
    Expansion(char),
    /// The file ends inside a quotation.
    #[error("the quotation that begins here has no end")]
    Unterminated,
    /// Neither `export`, an assignment nor `set --`.
    #[error("expected export NAME='value', init='path' or set -- 'argument'…")]
    Command,
    /// A variable's name is no name.
    #[error("{0:?} is not a variable name")]
    Name(String),
    /// A NUL, which no environment can hold.
    #[error("NUL byte")]
    Nul,
    /// More than the format's limits.
    #[error("more than {0} words or variables")]
    Limit(usize),
}

impl Zosrc {
    /// Parses the text of a `zosrc` file.
    ///
    /// # Errors
    ///
    /// [`Error`] with the line, for anything but the constant assignments the module describes.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut out = Self::default();
        for command in commands(text)? {
            let line = command.line;
            out.apply(command).map_err(|kind| Error { line, kind })?;
        }
        Ok(out)
    }

    fn apply(&mut self, command: Command) -> Result<(), ErrorKind> {
        let mut words = command.words.into_iter();
        let Some(first) = words.next() else { return Ok(()) };
        match first.text.as_str() {
            "export" => words.try_for_each(|word| {
                let (name, value) = assignment(word)?;
                self.set(name, value)
            }),
            "set" => self.set_args(words),
            _ => {
                let (name, value) = assignment(first)?;
                if words.next().is_some() {
                    return Err(ErrorKind::Command);
                }
                match name.as_str() {
                    "init" => self.init = Some(value),
                    // A plain assignment changes an exported variable, and is invisible otherwise.
                    _ if self.env.iter().any(|(n, _)| *n == name) => return self.set(name, value),
                    _ => {}
                }
                Ok(())
            }
        }
    }

    fn set(&mut self, name: String, value: String) -> Result<(), ErrorKind> {
        if let Some(slot) = self.env.iter_mut().find(|(n, _)| *n == name) {
            slot.1 = value;
            return Ok(());
        }
        if self.env.len() >= WORDS_MAX {
            return Err(ErrorKind::Limit(WORDS_MAX));
        }
        self.env.push((name, value));
        Ok(())
    }

    fn set_args(&mut self, mut words: impl Iterator<Item = Word>) -> Result<(), ErrorKind> {
        if words.next().is_none_or(|w| w.text != "--") {
            return Err(ErrorKind::Command);
        }
        self.args = words.map(|w| w.text).collect();
        Ok(())
    }
}

/// One simple command.
struct Command {
    line: usize,
    words: Vec<Word>,
}

/// One word, unquoted; `equals` is the byte index of its first `=` outside quotes.
#[derive(Default)]
struct Word {
    text: String,
    equals: Option<usize>,
    /// There was a word, if only `''`.
    seen: bool,
}

fn assignment(word: Word) -> Result<(String, String), ErrorKind> {
    let Some((name, value)) = word.equals.and_then(|at| word.text.split_at_checked(at)) else {
        return Err(ErrorKind::Command);
    };
    let mut letters = name.chars();
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !letters.next().is_some_and(first) || !letters.all(|c| first(c) || c.is_ascii_digit()) {
        return Err(ErrorKind::Name(name.to_owned()));
    }
    Ok((name.to_owned(), value.strip_prefix('=').unwrap_or_default().to_owned()))
}

/// Splits a script into simple commands.
fn commands(text: &str) -> Result<Vec<Command>, Error> {
    let mut lexer = Lexer { chars: text.chars().peekable(), line: 1 };
    let mut out = Vec::new();
    let mut command = Command { line: 1, words: Vec::new() };
    loop {
        let line = lexer.line;
        let token = lexer.token().map_err(|kind| Error { line, kind })?;
        match token {
            Token::Word(word) => {
                if command.words.is_empty() {
                    command.line = line;
                }
                if command.words.len() >= WORDS_MAX {
                    return Err(Error { line, kind: ErrorKind::Limit(WORDS_MAX) });
                }
                command.words.push(word);
            }
            Token::Blank => {}
            Token::Separator | Token::End => {
                if !command.words.is_empty() {
                    out.push(std::mem::replace(&mut command, Command { line, words: Vec::new() }));
                }
                if matches!(token, Token::End) {
                    return Ok(out);
                }
            }
        }
    }
}

enum Token {
    Word(Word),
    Separator,
    End,
    /// Only line continuations.
    Blank,
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Option<char>, ErrorKind> {
        let c = self.chars.next();
        match c {
            Some('\n') => self.line += 1,
            Some('\0') => return Err(ErrorKind::Nul),
            _ => {}
        }
        Ok(c)
    }

    fn token(&mut self) -> Result<Token, ErrorKind> {
        while self.chars.next_if(|c| matches!(c, ' ' | '\t' | '\r')).is_some() {}
        match self.chars.peek() {
            None => Ok(Token::End),
            Some('\n' | ';') => self.next().map(|_| Token::Separator),
            Some('#') => {
                while self.chars.next_if(|c| *c != '\n').is_some() {}
                Ok(Token::Separator)
            }
            Some(_) => self.word(),
        }
    }

    /// A word, up to a blank or separator outside quotes. A lone line continuation is no word.
    fn word(&mut self) -> Result<Token, ErrorKind> {
        let mut word = Word::default();
        while let Some(c) = self.chars.peek().copied() {
            if matches!(c, ' ' | '\t' | '\r' | '\n' | ';') {
                break;
            }
            self.next()?;
            match c {
                '\'' => self.single_quoted(&mut word)?,
                '"' => self.double_quoted(&mut word)?,
                '\\' => match self.next()? {
                    None => return Err(ErrorKind::Unterminated),
                    Some('\n') => continue,
                    Some(c) => word.text.push(c),
                },
                '$' | '`' | '&' | '|' | '<' | '>' | '(' | ')' | '*' | '?' | '[' | '!' => {
                    return Err(ErrorKind::Syntax(c));
                }
                '=' => {
                    word.equals.get_or_insert(word.text.len());
                    word.text.push('=');
                }
                c => word.text.push(c),
            }
            word.seen = true;
        }
        if word.seen { Ok(Token::Word(word)) } else { Ok(Token::Blank) }
    }

    fn single_quoted(&mut self, word: &mut Word) -> Result<(), ErrorKind> {
        loop {
            match self.next()? {
                None => return Err(ErrorKind::Unterminated),
                Some('\'') => return Ok(()),
                Some(c) => word.text.push(c),
            }
        }
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), ErrorKind> {
        loop {
            match self.next()? {
                None => return Err(ErrorKind::Unterminated),
                Some('"') => return Ok(()),
                Some(c @ ('$' | '`')) => return Err(ErrorKind::Expansion(c)),
                Some('\\') => match self.next()? {
                    None => return Err(ErrorKind::Unterminated),
                    Some('\n') => {}
                    Some(c @ ('$' | '`' | '"' | '\\')) => word.text.push(c),
                    Some(c) => word.text.extend(['\\', c]),
                },
                Some(c) => word.text.push(c),
            }
        }
    }
}

/// Most variables, and most words in one command.
const WORDS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Zosrc {
        Zosrc::parse(text).unwrap()
    }

    fn env(text: &str) -> Vec<(String, String)> {
        parsed(text).env
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn what_a_node_writes_is_understood() {
        let z = parsed(
            "#cloud-config\nexport A='1'\nexport B='two words'\n\n\
                        init='/sbin/zinit'\nset -- 'init' '-d' ''\n",
        );
        assert_eq!(z.env, [pair("A", "1"), pair("B", "two words")]);
        assert_eq!(z.init.as_deref(), Some("/sbin/zinit"));
        assert_eq!(z.args, ["init", "-d", ""]);
    }

    #[test]
    fn quotes_and_newlines_in_values_survive() {
        assert_eq!(
            env("export K='it'\\''s \"x\" $HOME `id`\nline 2\n'"),
            [pair("K", "it's \"x\" $HOME `id`\nline 2\n")]
        );
        assert_eq!(env(r#"export K='a'"'"'b'"#), [pair("K", "a'b")]);
        assert_eq!(env(r#"export K="a\"b\\c\$d\e""#), [pair("K", r#"a"b\c$d\e"#)]);
        assert_eq!(env("export K=a\\ b\\\nc"), [pair("K", "a bc")]);
        assert_eq!(env("export K=a=b"), [pair("K", "a=b")]);
        assert_eq!(
            env("export A=1 B=2; export C=\n"),
            [pair("A", "1"), pair("B", "2"), pair("C", "")]
        );
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(env("export K=1\nexport K=2\n"), [pair("K", "2")]);
        assert_eq!(env("export K=1\nK=3\nL=4\n"), [pair("K", "3")]);
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(parsed(""), Zosrc::default());
        assert_eq!(parsed("# only\n  # comments \\\n"), Zosrc::default());
        assert_eq!(parsed("\\\n\\\n"), Zosrc::default());
    }

    #[test]
    fn what_a_shell_would_run_is_refused_with_its_line() {
        for (text, line, kind) in [
            ("export A=1\nexport B=$(id)", 2, ErrorKind::Syntax('$')),
            ("export A=\"`id`\"", 1, ErrorKind::Expansion('`')),
            ("rm -rf /", 1, ErrorKind::Command),
            ("A=1 reboot", 1, ErrorKind::Command),
            ("A=1 & b", 1, ErrorKind::Syntax('&')),
            ("export A", 1, ErrorKind::Command),
            ("export 'A=1'", 1, ErrorKind::Command),
            ("export 9=1", 1, ErrorKind::Name("9".to_owned())),
            ("export =1", 1, ErrorKind::Name(String::new())),
            ("set -e", 1, ErrorKind::Command),
            ("\n\nexport A='never ends\n\n", 3, ErrorKind::Unterminated),
            ("export A=\\", 1, ErrorKind::Unterminated),
            ("export A='\0'", 1, ErrorKind::Nul),
        ] {
            assert_eq!(Zosrc::parse(text), Err(Error { line, kind }), "{text:?}");
        }
    }

    #[test]
    fn values_stay_out_of_messages() {
        assert!(!format!("{:?}", parsed("export K='hunter2'")).contains("hunter2"));
        let message = Zosrc::parse("export K='hunter2'$x").unwrap_err().to_string();
        assert!(!message.contains("hunter2"));
    }

    #[test]
    fn limits_hold() {
        let many: String = (0..=WORDS_MAX).map(|i| format!("export V{i}=x\n")).collect();
        assert_eq!(Zosrc::parse(&many).unwrap_err().kind, ErrorKind::Limit(WORDS_MAX));
        let long = format!("set -- {}", "a ".repeat(WORDS_MAX));
        assert_eq!(Zosrc::parse(&long).unwrap_err().kind, ErrorKind::Limit(WORDS_MAX));
    }

    #[test]
    fn deep_continuations_do_not_exhaust_the_stack() {
        let text = "\\\n".repeat(200_000) + "export A=1";
        assert_eq!(env(&text), [pair("A", "1")]);
    }
}
