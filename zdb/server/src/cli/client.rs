//! `zdb client`: commands by hand.
//!
//! With words it sends one command and shows the reply; without, it reads commands, a line each. A
//! word in double quotes may hold spaces and `\n`, `\r`, `\t`, `\\`, `\"`, `\xHH`.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::Args;
use zdb_client::{Client, ClientError, Value};

use super::server_address::{ServerAddress, read_password};

/// Send commands to a server and show its replies
///
/// Without a command, reads commands from standard input, a line each.
#[derive(Args)]
pub(crate) struct ClientArguments {
    #[command(flatten)]
    server: ServerAddress,
    /// Namespace to select first
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// File with that namespace's password
    #[arg(long, value_name = "PATH", requires = "namespace")]
    password_file: Option<PathBuf>,
    /// Show strings as they are, without quotes and numbers
    #[arg(long)]
    raw: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<std::ffi::OsString>,
}

/// Sends what was asked for.
pub(crate) fn run(arguments: &ClientArguments) -> anyhow::Result<()> {
    let mut client = connect(arguments)?;
    if arguments.command.is_empty() {
        return converse(&mut client, arguments);
    }
    let words: Vec<Vec<u8>> =
        arguments.command.iter().map(|word| word.clone().into_vec()).collect();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    print(&client.call(&words)?, arguments.raw)?;
    Ok(())
}

fn connect(arguments: &ClientArguments) -> anyhow::Result<Client> {
    let mut client = arguments.server.connect()?;
    if let Some(namespace) = &arguments.namespace {
        match &arguments.password_file {
            Some(path) => client.select_secure(namespace, &read_password(path)?)?,
            None => client.select(namespace, None)?,
        }
    }
    Ok(client)
}

/// Reads commands until the end of input. A refusal is shown and is no end.
fn converse(client: &mut Client, arguments: &ClientArguments) -> anyhow::Result<()> {
    let is_terminal = std::io::stdin().is_terminal();
    let endpoint = arguments.server.endpoint();
    let mut lines = std::io::stdin().lock().split(b'\n');
    loop {
        if is_terminal {
            print!("{endpoint}> ");
            std::io::stdout().flush()?;
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let words = match split_words(&line?) {
            Ok(words) => words,
            Err(error) => {
                eprintln!("zdb: {error}");
                continue;
            }
        };
        match words.first().map(|word| word.to_ascii_lowercase()).as_deref() {
            None => continue,
            Some(b"quit" | b"exit") => return Ok(()),
            Some(_) => {}
        }
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        match client.call(&words) {
            Ok(value) => print(&value, arguments.raw)?,
            Err(ClientError::Refused { text, .. }) => println!("(error) {text}"),
            Err(error) if client.is_broken() && is_terminal => {
                eprintln!("zdb: {:#}", anyhow::Error::from(error));
                *client = connect(arguments)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Words of a line; quotes hold them together.
fn split_words(line: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii();
    while let Some(first) = rest.first() {
        let (word, left) = if *first == b'"' {
            quoted(rest.get(1..).unwrap_or_default())?
        } else {
            let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
            let (word, left) = rest.split_at(end);
            (word.to_vec(), left)
        };
        words.push(word);
        rest = left.trim_ascii_start();
    }
    Ok(words)
}

/// A word up to its closing quote, and what follows.
fn quoted(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), &'static str> {
    const OPEN: &str = "a quote is not closed";
    let mut word = Vec::new();
    loop {
        let (first, left) = rest.split_first().ok_or(OPEN)?;
        rest = left;
        match first {
            b'"' => return Ok((word, rest)),
            b'\\' => {
                let (escape, left) = rest.split_first().ok_or(OPEN)?;
                rest = left;
                word.push(match escape {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'x' => {
                        let (digits, left) = rest.split_at_checked(2).ok_or(OPEN)?;
                        rest = left;
                        let [byte] = zdb_server::session::read_hex(digits)
                            .ok_or("\\x is followed by two hex digits")?;
                        byte
                    }
                    other => *other,
                });
            }
            other => word.push(*other),
        }
    }
}

fn print(value: &Value, is_raw: bool) -> std::io::Result<()> {
    let mut out = Vec::new();
    if is_raw {
        show_raw(value, &mut out);
    } else {
        show(value, "", &mut out);
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(&out).and_then(|()| stdout.flush()) {
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// As `redis-cli` shows values: types told apart, arrays numbered.
fn show(value: &Value, indent: &str, out: &mut Vec<u8>) {
    match value {
        Value::Simple(text) => out.extend_from_slice(text),
        Value::Error(text) => {
            out.extend_from_slice(b"(error) ");
            out.extend_from_slice(text);
        }
        Value::Integer(number) => out.extend_from_slice(format!("(integer) {number}").as_bytes()),
        Value::Nil => out.extend_from_slice(b"(nil)"),
        Value::Bulk(bytes) if is_text(bytes) && bytes.contains(&b'\n') => {
            out.extend_from_slice(bytes.trim_ascii_end());
        }
        Value::Bulk(bytes) => {
            out.extend_from_slice(format!("\"{}\"", bytes.escape_ascii()).as_bytes());
        }
        Value::Array(values) if values.is_empty() => out.extend_from_slice(b"(empty array)"),
        Value::Array(values) => {
            for (number, value) in (1..).zip(values) {
                let label = format!("{number}) ");
                if number > 1 {
                    out.extend_from_slice(indent.as_bytes());
                }
                out.extend_from_slice(label.as_bytes());
                show(value, &format!("{indent}{}", " ".repeat(label.len())), out);
            }
            return;
        }
    }
    out.push(b'\n');
}

fn show_raw(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Simple(bytes) | Value::Error(bytes) | Value::Bulk(bytes) => {
            out.extend_from_slice(bytes);
        }
        Value::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Nil => {}
        Value::Array(values) => {
            values.iter().for_each(|value| show_raw(value, out));
            return;
        }
    }
    out.push(b'\n');
}

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(|c| c.is_control() && c != '\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        let words = split_words(b"  SET \"a key\" \"\\x00\\n\\\"\" plain\\n  ").unwrap();
        assert_eq!(words, [&b"SET"[..], b"a key", b"\0\n\"", b"plain\\n"]);
        assert_eq!(split_words(b"SET \"\" \"\"").unwrap(), [&b"SET"[..], b"", b""]);
        for bad in ["\"open", "\"\\", "\"\\x1\"", "\"\\xzz\""] {
            assert!(split_words(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn nested_arrays_are_numbered_and_indented() {
        let inner = Value::Array(vec![Value::Bulk(b"k\0".to_vec()), Value::Integer(7)]);
        let value = Value::Array(vec![inner, Value::Nil, Value::Array(vec![])]);
        let mut out = Vec::new();
        show(&value, "", &mut out);
        let expected = "1) 1) \"k\\x00\"\n   2) (integer) 7\n2) (nil)\n3) (empty array)\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
