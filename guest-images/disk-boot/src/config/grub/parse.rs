//! From words to statements.

use std::rc::Rc;

use super::GrubError;
use super::lex::{Token, Word, lex};

/// Deepest nesting of statements.
const DEPTH_MAX: usize = 32;

/// Statements, one after the other. Shared: functions and menu entries keep theirs.
pub(super) type Block = Rc<[Statement]>;

/// What a script does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command and its words, with a block behind it if it is a menu entry.
    Command { words: Vec<Word>, body: Option<Block> },
    /// Conditions and what to do when they hold, and what else.
    If { arms: Vec<(Block, Block)>, otherwise: Block },
    /// A loop while a condition holds, or until it does.
    While { condition: Block, body: Block, is_until: bool },
    /// A loop over words.
    For { variable: String, words: Vec<Word>, body: Block },
    /// A function.
    Function { name: String, body: Block },
}

/// The statements of a script.
pub(super) fn parse(text: &str) -> Result<Block, GrubError> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let block = parser.block(&[])?;
    if parser.at < parser.tokens.len() {
        return Err(parser.error("something ends that did not begin"));
    }
    Ok(block)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn error(&self, reason: &'static str) -> GrubError {
        let last = self.tokens.len().saturating_sub(1);
        let line = self.tokens.get(self.at.min(last)).map_or(0, |(line, _)| *line);
        GrubError::Syntax { line, reason }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => word.plain(),
            _ => None,
        }
    }

    /// Statements up to one of these keywords, a closing brace or the end, which are left.
    fn block(&mut self, ends: &[&str]) -> Result<Block, GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("statements in statements, more than 32 deep"));
        }
        let mut statements = Vec::new();
        loop {
            match self.peek() {
                None | Some(Token::Close) => break,
                Some(Token::End) => self.at += 1,
                Some(Token::Open) => {
                    // A block that stands alone does what is in it.
                    let words = vec![Word::default()];
                    statements.push(Statement::Command { words, body: Some(self.braces()?) });
                }
                Some(Token::Word(word)) => {
                    if word.plain().is_some_and(|word| ends.contains(&word)) {
                        break;
                    }
                    let statement = self.statement()?;
                    statements.push(statement);
                }
            }
        }
        self.depth -= 1;
        Ok(statements.into())
    }

    /// A block in braces.
    fn braces(&mut self) -> Result<Block, GrubError> {
        self.at += 1;
        let block = self.block(&[])?;
        if self.peek() != Some(&Token::Close) {
            return Err(self.error("a brace is not closed"));
        }
        self.at += 1;
        Ok(block)
    }

    fn expect(&mut self, keyword: &str, reason: &'static str) -> Result<(), GrubError> {
        if self.keyword() != Some(keyword) {
            return Err(self.error(reason));
        }
        self.at += 1;
        Ok(())
    }

    fn statement(&mut self) -> Result<Statement, GrubError> {
        match self.keyword() {
            Some("if") => self.conditional(),
            Some("while") => self.repeated(false),
            Some("until") => self.repeated(true),
            Some("for") => self.each(),
            Some("function") => {
                self.at += 1;
                let name = self.keyword().ok_or_else(|| self.error("a function without a name"))?;
                let name = name.to_owned();
                self.at += 1;
                while self.peek() == Some(&Token::End) {
                    self.at += 1;
                }
                if self.peek() != Some(&Token::Open) {
                    return Err(self.error("a function without a block"));
                }
                Ok(Statement::Function { name, body: self.braces()? })
            }
            _ => self.command(),
        }
    }

    fn command(&mut self) -> Result<Statement, GrubError> {
        let mut words = Vec::new();
        loop {
            match self.peek() {
                Some(Token::Word(word)) => {
                    words.push(word.clone());
                    self.at += 1;
                }
                Some(Token::Open) => {
                    return Ok(Statement::Command { words, body: Some(self.braces()?) });
                }
                _ => return Ok(Statement::Command { words, body: None }),
            }
        }
    }

    fn conditional(&mut self) -> Result<Statement, GrubError> {
        let mut arms = Vec::new();
        loop {
            // `if` or `elif`.
            self.at += 1;
            let condition = self.block(&["then"])?;
            self.expect("then", "an `if` without `then`")?;
            let body = self.block(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            if self.keyword() != Some("elif") {
                break;
            }
        }
        let otherwise = match self.keyword() {
            Some("else") => {
                self.at += 1;
                self.block(&["fi"])?
            }
            _ => Block::from([]),
        };
        self.expect("fi", "an `if` without `fi`")?;
        Ok(Statement::If { arms, otherwise })
    }

    fn repeated(&mut self, is_until: bool) -> Result<Statement, GrubError> {
        self.at += 1;
        let condition = self.block(&["do"])?;
        let body = self.done()?;
        Ok(Statement::While { condition, body, is_until })
    }

    fn each(&mut self) -> Result<Statement, GrubError> {
        self.at += 1;
        let variable = self.keyword().ok_or_else(|| self.error("a `for` without a variable"))?;
        let variable = variable.to_owned();
        self.at += 1;
        self.expect("in", "a `for` without `in`")?;
        let Statement::Command { words, body: None } = self.command()? else {
            return Err(self.error("a `for` with a block among its words"));
        };
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        let body = self.done()?;
        Ok(Statement::For { variable, words, body })
    }

    /// `do … done`
    fn done(&mut self) -> Result<Block, GrubError> {
        self.expect("do", "a loop without `do`")?;
        let body = self.block(&["done"])?;
        self.expect("done", "a loop without `done`")?;
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_nest() {
        let text = "if [ a ]; then b; elif c\nthen\nd; else e; fi; function f { g; }\n\
                    menuentry 'x' --id y {\n linux z\n}\nfor i in 1 2; do h; done\nuntil k; do l; done";
        let block = parse(text).unwrap();
        assert_eq!(block.len(), 5);
        let Statement::If { arms, otherwise } = &block[0] else { panic!("{block:?}") };
        assert_eq!((arms.len(), otherwise.len()), (2, 1));
        assert!(
            matches!(&block[1], Statement::Function { name, body } if name == "f" && body.len() == 1)
        );
        assert!(
            matches!(&block[2], Statement::Command { words, body: Some(_) } if words.len() == 4)
        );
        assert!(matches!(&block[3], Statement::For { words, .. } if words.len() == 2));
        assert!(matches!(&block[4], Statement::While { is_until: true, .. }));
    }

    #[test]
    fn what_does_not_end_is_told_with_its_line() {
        for (text, expected) in [
            ("a\nif b; then c", "line 2: an `if` without `fi`"),
            ("if b\nc", "an `if` without `then`"),
            ("menuentry x {\n a", "a brace is not closed"),
            ("a\n}", "line 2: something ends that did not begin"),
            ("while a; b; done", "a loop without `do`"),
            ("function { }", "a function without a name"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let deep = "menuentry x {\n".repeat(40);
        assert!(parse(&deep).unwrap_err().to_string().contains("32 deep"));
    }
}
