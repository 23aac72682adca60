//! `/.startup.toml`: the entrypoint and environment that an image brings along.
//!
//! Written by the OCI conversion, among others (`reference/flist.md` 1.4):
//!
//! ```toml
//! [startup.entry]
//! name = "core.system"
//! [startup.entry.args]
//! name = "/bin/server"
//! args = ["--port", "80"]
//! dir = "/srv"
//! env = { LANG = "C" }
//! ```

use toml::{Table, Value};

/// What the file says.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Startup {
    /// Program and arguments; empty if none are named.
    pub argv: Vec<String>,
    /// Working folder for that program.
    pub dir: Option<String>,
    /// Environment; the workload's own wins over it.
    pub env: Vec<(String, String)>,
}

/// Names only: values may be secrets.
impl std::fmt::Debug for Startup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Startup").field("argv", &self.argv).field("env", &names).finish()
    }
}

/// Why the file was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not TOML.
    #[error("/.startup.toml: line {line}: not TOML: {what}")]
    Grammar {
        /// Line, counted from 1.
        line: usize,
        /// What the parser said.
        what: String,
    },
    /// A value of the wrong kind.
    #[error("/.startup.toml: {key}: expected {expected}")]
    Kind {
        /// The key.
        key: String,
        /// What should be there.
        expected: &'static str,
    },
}

impl Startup {
    /// Parses the file's text.
    ///
    /// # Errors
    ///
    /// [`Error`], naming the line or key.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Error::Grammar { line, what: error.message().to_owned() }
        })?;
        let mut args = &table;
        for key in ["startup", "entry", "args"] {
            match args.get(key) {
                Some(Value::Table(inner)) => args = inner,
                Some(_) => return Err(kind(key, "a table")),
                None => return Ok(Self::default()),
            }
        }
        let mut argv = Vec::new();
        if let Some(name) = text_of(args, "name")?.filter(|name| !name.is_empty()) {
            argv.push(name);
            argv.extend(strings(args.get("args"))?);
        }
        let dir = text_of(args, "dir")?.filter(|dir| !dir.is_empty());
        Ok(Self { argv, dir, env: environment(args.get("env"))? })
    }
}

fn kind(key: &str, expected: &'static str) -> Error {
    Error::Kind { key: key.to_owned(), expected }
}

fn text_of(table: &Table, key: &str) -> Result<Option<String>, Error> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.contains('\0') => Ok(Some(text.clone())),
        Some(_) => Err(kind(key, "text without NUL")),
    }
}

fn strings(value: Option<&Value>) -> Result<Vec<String>, Error> {
    let wrong = || kind("args", "a list of texts without NUL");
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => {
            let texts = values.iter().map(|value| match value {
                Value::String(text) if !text.contains('\0') => Ok(text.clone()),
                _ => Err(wrong()),
            });
            texts.collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn environment(value: Option<&Value>) -> Result<Vec<(String, String)>, Error> {
    let pair = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            _ => return Err(kind(&format!("env.{name}"), "text")),
        };
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            return Err(kind(&format!("env.{name}"), "a name without = and no NUL"));
        }
        Ok((name.clone(), text))
    };
    match value {
        None => Ok(Vec::new()),
        Some(Value::Table(table)) => table.iter().map(pair).collect(),
        Some(_) => Err(kind("env", "a table")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_conversion_writes_is_understood() {
        let startup = Startup::parse(
            "[startup.entry]\nname = \"core.system\"\n[startup.entry.args]\nname = \"/bin/s\"\n\
             args = [\"--port\", \"80\"]\ndir = \"/srv\"\nenv = { LANG = \"C\", N = 1 }\n",
        )
        .unwrap();
        assert_eq!(startup.argv, ["/bin/s", "--port", "80"]);
        assert_eq!(startup.dir.as_deref(), Some("/srv"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(startup.env, [pair("LANG", "C"), pair("N", "1")]);
    }

    #[test]
    fn a_file_without_an_entry_says_nothing() {
        assert_eq!(Startup::parse("").unwrap(), Startup::default());
        assert_eq!(Startup::parse("[startup.entry]\nname = \"core.base\"").unwrap().argv, [""; 0]);
        let nameless = "[startup.entry.args]\nname = \"\"\nargs = [\"x\"]";
        assert!(Startup::parse(nameless).unwrap().argv.is_empty());
    }

    #[test]
    fn errors_name_line_or_key() {
        for (text, want) in [
            ("a = 1\nb = = 2", "/.startup.toml: line 2: not TOML"),
            ("startup = 1", "/.startup.toml: startup: expected a table"),
            ("[startup.entry.args]\nname = 1", "name: expected text"),
            ("[startup.entry.args]\nname = \"a\"\nargs = [1]", "args: expected a list of texts"),
            ("[startup.entry.args]\nenv = { A = [] }", "env.A: expected text"),
            ("[startup.entry.args.env]\n\"A=B\" = \"x\"", "env.A=B: expected a name"),
        ] {
            let message = Startup::parse(text).unwrap_err().to_string();
            assert!(message.contains(want), "{text:?}: {message}");
        }
    }
}
