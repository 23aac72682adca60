//! `test` and `[`: what a condition says.

use super::GrubError;
use super::run::Machine;
use crate::filesystem::Kind;

/// Whether an expression holds. One that makes no sense does not.
pub(super) fn holds(machine: &Machine<'_>, words: &[String]) -> Result<bool, GrubError> {
    let mut expression = Expression { machine, words, at: 0, depth: 0 };
    let holds = expression.any()?;
    Ok(holds && expression.at == words.len())
}

/// Deepest nesting of parentheses and negations.
const DEPTH_MAX: usize = 32;

struct Expression<'a> {
    machine: &'a Machine<'a>,
    words: &'a [String],
    at: usize,
    depth: usize,
}

impl<'a> Expression<'a> {
    fn peek(&self, ahead: usize) -> Option<&'a str> {
        self.words.get(self.at + ahead).map(String::as_str)
    }

    fn any(&mut self) -> Result<bool, GrubError> {
        let mut holds = self.all()?;
        while self.peek(0) == Some("-o") {
            self.at += 1;
            holds |= self.all()?;
        }
        Ok(holds)
    }

    fn all(&mut self) -> Result<bool, GrubError> {
        let mut holds = self.one()?;
        while self.peek(0) == Some("-a") {
            self.at += 1;
            holds &= self.one()?;
        }
        Ok(holds)
    }

    fn one(&mut self) -> Result<bool, GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(GrubError::TooMuch("has conditions in conditions, more than 32 deep"));
        }
        let holds = self.primary();
        self.depth -= 1;
        holds
    }

    fn primary(&mut self) -> Result<bool, GrubError> {
        // Two operands and what is between them come first: an operand may look like an operator.
        if let (Some(left), Some(operator), Some(right)) =
            (self.peek(0), self.peek(1), self.peek(2))
            && let Some(holds) = compared(left, operator, right)
        {
            self.at += 3;
            return Ok(holds);
        }
        let Some(word) = self.peek(0) else { return Ok(false) };
        self.at += 1;
        match (word, self.peek(0)) {
            ("!", Some(_)) => Ok(!self.one()?),
            ("(", Some(_)) => {
                let holds = self.any()?;
                self.at += 1;
                Ok(holds)
            }
            ("-z", Some(text)) => Ok(self.taken(text.is_empty())),
            ("-n", Some(text)) => Ok(self.taken(!text.is_empty())),
            ("-e" | "-f" | "-d" | "-s", Some(path)) => {
                let found = self.machine.look(path)?;
                let holds = found.is_some_and(|node| match word {
                    "-f" => node.kind == Kind::File,
                    "-d" => node.kind == Kind::Folder,
                    "-s" => node.size > 0,
                    _ => true,
                });
                Ok(self.taken(holds))
            }
            _ => Ok(!word.is_empty()),
        }
    }

    fn taken(&mut self, holds: bool) -> bool {
        self.at += 1;
        holds
    }
}

fn compared(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let (a, b) = (number(left), number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "<=" => left <= right,
        ">=" => left >= right,
        "-eq" => a == b,
        "-ne" => a != b,
        "-lt" => a < b,
        "-le" => a <= b,
        "-gt" => a > b,
        "-ge" => a >= b,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::testing::Memory;
    use crate::volumes::Place;
    use crate::volumes::testing::volumes;

    #[test]
    fn conditions_are_those_of_a_shell() {
        let volumes = volumes(vec![Memory::new("u", &[("boot/x", "1"), ("empty", "")])]);
        let place = Place { volume: 0, path: "/boot/grub/grub.cfg".into() };
        let machine = Machine::new(&volumes, &place);
        let check = |text: &str| {
            let words: Vec<String> = text.split(' ').map(|word| word.replace("''", "")).collect();
            holds(&machine, &words).unwrap()
        };
        for text in [
            "a = a",
            "x == x",
            "a != b",
            "1 -lt 2",
            "-n a",
            "-z ''",
            "! -n ''",
            "a",
            "-e /boot",
            "-f /boot/x",
            "-d (hd0,gpt1)/boot",
            "-s /boot/x",
            "( a = b ) -o a = a",
            "a = a -a ! b = a",
            "-z = -z",
        ] {
            assert!(check(text), "{text}");
        }
        for text in [
            "''",
            "a = b",
            "-n ''",
            "-f /boot",
            "-e /none",
            "-s /empty",
            "a = a -a ''",
            "a b",
            "! a",
            "-f (hd0,gpt7)/x",
            "( a",
        ] {
            assert!(!check(text), "{text}");
        }
        assert!(!holds(&machine, &[]).unwrap());
        let deep = vec!["!".to_owned(); 50];
        assert!(holds(&machine, &deep).is_err());
    }
}
