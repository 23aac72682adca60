//! `flist inspect`: what an image holds, without its blocks.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets};
use flist::format::Image;
use flist::inspect::{Listing, Summary, listing, summary};
use serde::Serialize;

use super::terminal::print;

/// Show what an image holds, without fetching any of its blocks
///
/// With --json, prints one object: `format` ("fl", or "flist" for legacy images), `image_hash`
/// (BLAKE2b-256 of the file), `image_size`, `entry_count`, `inodes` (counts by kind),
/// `hard_link_count`, `xattr_count`, `file_bytes`, `block_count`, `distinct_block_count`, `routes`
/// (`start`, `end`, `url`), `tags`. Sizes are in bytes. With --list also `entries`, each with `path`,
/// `mode` (octal), `nlink`, `uid`, `gid`, `size`, `mtime` (seconds), `mtime_nsec`, and where they
/// apply `path_base64` (of paths that are not UTF-8), `target`, `rdev` (major, minor), `xattrs`
/// (values in base64).
#[derive(Args)]
pub(crate) struct InspectArguments {
    /// The image, `.fl` or `.flist`
    image: PathBuf,
    /// List every entry, like `ls -lR`
    #[arg(short, long)]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<Listing>>,
}

/// Runs the command.
pub(crate) fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let image = Image::open(&arguments.image)?;
    let text = if arguments.json {
        let entries = arguments.list.then(|| listing(&image));
        let document = Document { summary: summary(&image, &arguments.image)?, entries };
        serde_json::to_string_pretty(&document)?
    } else if arguments.list {
        let lines: Vec<_> = listing(&image).iter().map(line).collect();
        lines.join("\n")
    } else {
        table(&summary(&image, &arguments.image)?).trim_fmt()
    };
    Ok(print(&(text + "\n"))?)
}

fn table(summary: &Summary) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let generation = match summary.format {
        "fl" => "fl (current)",
        _ => "flist (legacy)",
    };
    let kinds = &summary.inodes;
    table.add_row(["format", generation]);
    table.add_row(["image hash", &summary.image_hash]);
    for (name, value) in [
        ("image size", summary.image_size),
        ("entries", summary.entry_count),
        ("  files", kinds.file),
        ("  directories", kinds.directory),
        ("  symbolic links", kinds.symlink),
        ("  character devices", kinds.character_device),
        ("  block devices", kinds.block_device),
        ("  named pipes", kinds.fifo),
        ("  sockets", kinds.socket),
        ("  hard links", summary.hard_link_count),
        ("extended attributes", summary.xattr_count),
        ("bytes in files", summary.file_bytes),
        ("blocks", summary.block_count),
        ("  distinct", summary.distinct_block_count),
    ] {
        table.add_row([name, &value.to_string()]);
    }
    for route in &summary.routes {
        table.add_row([&format!("route {}-{}", route.start, route.end), &route.url]);
    }
    for (key, value) in &summary.tags {
        table.add_row([&format!("tag {}", key.escape_debug()), &value.escape_debug().to_string()]);
    }
    table
}

/// Mode, links, owner, group, size or device, time in UTC, path.
fn line(entry: &Listing) -> String {
    let mode = u32::from_str_radix(&entry.mode, 8).unwrap_or_default();
    let size = match entry.rdev {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => entry.size.to_string(),
    };
    let target = entry.target.as_ref();
    let target = target.map_or_else(String::new, |target| format!(" -> {}", target.escape_debug()));
    format!(
        "{} {:>3} {:>5} {:>5} {:>12} {} {}{target}",
        mode_text(mode),
        entry.nlink,
        entry.uid,
        entry.gid,
        size,
        time_text(entry.mtime),
        entry.path.escape_debug(),
    )
}

/// `-rwsr-xr-t`, as `ls` prints it.
fn mode_text(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o010_000 => 'p',
        0o020_000 => 'c',
        0o040_000 => 'd',
        0o060_000 => 'b',
        0o120_000 => 'l',
        0o140_000 => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Seconds since the Unix epoch as `2026-11-23T08:00:00Z`, in the proleptic Gregorian calendar.
fn time_text(seconds: i64) -> String {
    const SECONDS_PER_DAY: i64 = 86_400;
    let (days, rest) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    // Years begin in March here, so that the leap day is their last.
    let shifted = i128::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_ages() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_600_000_000, "2020-09-13T12:26:40Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time_text(seconds), text);
        }
        let _ = (time_text(i64::MIN), time_text(i64::MAX));
    }

    #[test]
    fn modes_as_ls_prints_them() {
        assert_eq!(mode_text(0o104_755), "-rwsr-xr-x");
        assert_eq!(mode_text(0o102_644), "-rw-r-Sr--");
        assert_eq!(mode_text(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_text(0o120_777), "lrwxrwxrwx");
    }
}
