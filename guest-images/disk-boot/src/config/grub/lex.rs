//! From text to words: quotes, variables, comments.

use super::GrubError;

/// Most words of a script.
const TOKEN_COUNT_MAX: usize = 200_000;

/// What a script consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A word.
    Word(Word),
    /// The end of a line, or a semicolon.
    End,
    /// `{`
    Open,
    /// `}`
    Close,
}

/// A word: texts and variables, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// Whether any of it is quoted: it is a word then even if it is empty, and never a keyword.
    pub(super) is_quoted: bool,
}

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// A variable's value; unquoted, it falls into words at its blanks.
    Variable {
        name: String,
        is_quoted: bool,
    },
}

impl Word {
    /// The word as it is written, if it could be a keyword.
    pub(super) fn plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.is_quoted => Some(text),
            _ => None,
        }
    }

    fn push(&mut self, letter: char) {
        match self.pieces.last_mut() {
            Some(Piece::Text(text)) => text.push(letter),
            _ => self.pieces.push(Piece::Text(letter.into())),
        }
    }
}

/// The words of a script, each with its line.
pub(super) fn lex(text: &str) -> Result<Vec<(usize, Token)>, GrubError> {
    let mut lexer = Lexer { letters: text.chars().peekable(), line: 1, tokens: Vec::new() };
    lexer.all()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    letters: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    tokens: Vec<(usize, Token)>,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let letter = self.letters.next();
        self.line += usize::from(letter == Some('\n'));
        letter
    }

    fn all(&mut self) -> Result<(), GrubError> {
        while let Some(letter) = self.letters.peek().copied() {
            let line = self.line;
            match letter {
                '\n' | ';' => {
                    self.next();
                    self.push(line, Token::End)?;
                }
                '#' => {
                    while self.letters.peek().is_some_and(|letter| *letter != '\n') {
                        self.next();
                    }
                }
                letter if letter.is_whitespace() => drop(self.next()),
                _ => {
                    let word = self.word()?;
                    let token = match word.plain() {
                        Some("{") => Token::Open,
                        Some("}") => Token::Close,
                        // A line that was continued into nothing is no word.
                        _ if word.pieces.is_empty() && !word.is_quoted => continue,
                        _ => Token::Word(word),
                    };
                    self.push(line, token)?;
                }
            }
        }
        let line = self.line;
        self.push(line, Token::End)
    }

    fn push(&mut self, line: usize, token: Token) -> Result<(), GrubError> {
        if self.tokens.len() >= TOKEN_COUNT_MAX {
            return Err(GrubError::TooMuch("has more than 200000 words"));
        }
        self.tokens.push((line, token));
        Ok(())
    }

    fn word(&mut self) -> Result<Word, GrubError> {
        let mut word = Word::default();
        while let Some(letter) = self.letters.peek().copied() {
            match letter {
                ';' => break,
                letter if letter.is_whitespace() => break,
                '\'' => self.single(&mut word)?,
                '"' => self.double(&mut word)?,
                '\\' => {
                    self.next();
                    match self.next() {
                        // A line that is continued.
                        None | Some('\n') => {}
                        Some(letter) => {
                            word.push(letter);
                            word.is_quoted = true;
                        }
                    }
                }
                '$' => self.variable(&mut word, false),
                _ => {
                    self.next();
                    word.push(letter);
                }
            }
        }
        Ok(word)
    }

    fn single(&mut self, word: &mut Word) -> Result<(), GrubError> {
        let line = self.line;
        self.next();
        word.is_quoted = true;
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(letter) => word.push(letter),
                None => return Err(unended(line)),
            }
        }
    }

    fn double(&mut self, word: &mut Word) -> Result<(), GrubError> {
        let line = self.line;
        self.next();
        word.is_quoted = true;
        loop {
            match self.letters.peek().copied() {
                None => return Err(unended(line)),
                Some('"') => {
                    self.next();
                    return Ok(());
                }
                Some('$') => self.variable(word, true),
                Some('\\') => {
                    self.next();
                    match self.next() {
                        None | Some('\n') => {}
                        Some(letter @ ('$' | '"' | '\\')) => word.push(letter),
                        Some(letter) => {
                            word.push('\\');
                            word.push(letter);
                        }
                    }
                }
                Some(letter) => {
                    self.next();
                    word.push(letter);
                }
            }
        }
    }

    /// `$name`, `${name}`, `$1`, `$@`; a dollar before anything else is one.
    fn variable(&mut self, word: &mut Word, is_quoted: bool) {
        self.next();
        let mut name = String::new();
        let is_braced = self.letters.peek() == Some(&'{');
        if is_braced {
            self.next();
            while let Some(letter) = self.next() {
                if letter == '}' {
                    break;
                }
                name.push(letter);
            }
        } else {
            while let Some(letter) = self.letters.peek().copied() {
                let is_special = name.is_empty() && matches!(letter, '@' | '*' | '#' | '?');
                let is_part = letter.is_ascii_alphanumeric() || letter == '_';
                if !is_special && !is_part {
                    break;
                }
                self.next();
                name.push(letter);
                let is_whole =
                    name.starts_with(|letter: char| !letter.is_ascii_alphabetic() && letter != '_');
                if is_whole {
                    break;
                }
            }
        }
        if name.is_empty() {
            word.push('$');
        } else {
            word.pieces.push(Piece::Variable { name, is_quoted });
        }
    }
}

fn unended(line: usize) -> GrubError {
    GrubError::Syntax { line, reason: "a quotation has no end" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let tokens = lex(text).unwrap().into_iter().map(|(_, token)| match token {
            Token::End => ";".to_owned(),
            Token::Open => "{".to_owned(),
            Token::Close => "}".to_owned(),
            Token::Word(word) => {
                let pieces = word.pieces.iter().map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Variable { name, is_quoted: true } => format!("<\"{name}\">"),
                    Piece::Variable { name, is_quoted: false } => format!("<{name}>"),
                });
                pieces.collect()
            }
        });
        tokens.collect()
    }

    #[test]
    fn words_are_those_of_a_shell() {
        let text = "set a='x y' # no\nb=\"$a-${b}\\\"\" c$a;{ }";
        let expected = ["set", "a=x y", ";", "b=<\"a\">-<\"b\">\"", "c<a>", ";", "{", "}", ";"];
        assert_eq!(shown(text), expected);
        assert_eq!(shown("a\\\nb \\\n c$1x $@ $"), ["ab", "c<1>x", "<@>", "$", ";"]);
        assert_eq!(shown("'{' \\}"), ["{", "}", ";"]);
        assert_eq!(lex("'{'").unwrap()[0].1.clone(), {
            let pieces = vec![Piece::Text("{".into())];
            Token::Word(Word { pieces, is_quoted: true })
        });
        for text in ["'a", "\"a", "x \"$a"] {
            assert!(lex(text).is_err(), "{text}");
        }
    }
}
