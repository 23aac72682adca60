//! What people read: tables, times, colours where they are wanted.

use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Prints results. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints a value as JSON, over several lines.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(&(serde_json::to_string_pretty(value)? + "\n"))?)
}

/// Whether `NO_COLOR` (no-color.org) leaves it to us.
pub(crate) fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A colour of the terminal.
#[derive(Clone, Copy)]
pub(crate) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// The text in this colour, if standard output is a terminal that may have some.
pub(crate) fn paint(text: &str, colour: Colour) -> String {
    if std::io::stdout().is_terminal() && colour_is_wanted() {
        format!("\x1b[{}m{text}\x1b[0m", colour as u8)
    } else {
        text.to_owned()
    }
}

/// Columns with a heading, as wide as what is in them.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        padded.collect::<String>().trim_end().to_owned() + "\n"
    };
    let mut text = line(&heading);
    for row in rows {
        text.push_str(&line(&row.each_ref().map(String::as_str)));
    }
    text
}

/// A time in its two largest units: `3d 4h`, `5m 3s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// The text without what would reach into the terminal: names and errors come from elsewhere.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["a".to_owned(), "running".to_owned()], ["lange".to_owned(), "é".to_owned()]];
        let expected = "NAME   STATE\na      running\nlange  é\n";
        assert_eq!(table(["NAME", "STATE"], &rows), expected);
        assert_eq!(table(["NAME"], &[]), "NAME\n");
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h")]
        {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn terminals_are_left_alone() {
        assert_eq!(clean("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
