//! Entries of the Boot Loader Specification, type 1: a file each in `loader/entries`
//! (<https://uapi-group.org/specifications/specs/boot_loader_specification/>).
//!
//! systemd-boot reads them from the partition that firmware boots from, with `loader/loader.conf` for
//! the default; Fedora's GRUB reads them from `/boot` and expands its own variables in them. Newest
//! versions come first.

use std::cmp::Ordering;

use crate::config::{INITRD_COUNT_MAX, OFFER_COUNT_MAX, Offer};
use crate::filesystem::FileError;
use crate::volumes::{Place, Volumes};

/// Where entries are.
const FOLDER: &str = "/loader/entries";
/// What systemd-boot is told.
const LOADER: &str = "/loader/loader.conf";

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlsEntry {
    /// Its file's name without `.conf`.
    pub id: String,
    /// What it boots.
    pub offer: Offer,
}

/// What systemd-boot would offer on a volume, its default first.
///
/// # Errors
/// [`FileError`].
pub fn offers(volumes: &Volumes, volume: usize) -> Result<Vec<Offer>, FileError> {
    let folder = Place { volume, path: FOLDER.to_owned() };
    let mut entries = entries(volumes, &folder, &|_| String::new())?;
    let loader = volumes.text(&Place { volume, path: LOADER.to_owned() })?.unwrap_or_default();
    let pattern = lines(&loader).find(|(key, _)| *key == "default").map(|(_, value)| value);
    if let Some(pattern) = pattern {
        let pattern = pattern.strip_suffix(".conf").unwrap_or(pattern);
        // Stable: the newest of those that match comes first.
        entries.sort_by_key(|entry| !matches(pattern, &entry.id));
    }
    Ok(entries.into_iter().map(|entry| entry.offer).collect())
}

/// The entries in a folder, newest first. `expand` tells the values of GRUB's variables.
///
/// # Errors
/// [`FileError`].
pub fn entries(
    volumes: &Volumes,
    folder: &Place,
    expand: &dyn Fn(&str) -> String,
) -> Result<Vec<BlsEntry>, FileError> {
    let mut entries = Vec::new();
    for name in volumes.list(folder)? {
        let Some(id) = name.strip_suffix(".conf") else { continue };
        let place = Place { volume: folder.volume, path: format!("{}/{name}", folder.path) };
        let Some(text) = volumes.text(&place)? else { continue };
        // Behind a plus sign stands how often a boot may be tried.
        let id = id.split_once('+').map_or(id, |(id, _)| id).to_owned();
        let (version, offer) = parse(&text, folder.volume, expand);
        entries.push((version, BlsEntry { id, offer }));
        if entries.len() >= OFFER_COUNT_MAX {
            break;
        }
    }
    entries.sort_by(|(version_a, a), (version_b, b)| {
        compare(version_b, version_a).then_with(|| compare(&b.id, &a.id))
    });
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

/// Keys and values of a file.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let (key, value) = line.split_once(char::is_whitespace)?;
        Some((key, value.trim()))
    })
}

fn parse(text: &str, volume: usize, expand: &dyn Fn(&str) -> String) -> (String, Offer) {
    let mut offer = Offer::default();
    let mut version = String::new();
    for (key, value) in lines(text) {
        let words: Vec<String> =
            value.split_whitespace().flat_map(|word| expanded(word, expand)).collect();
        let mut places = words.iter().map(|path| Place { volume, path: path.clone() });
        match key {
            "title" => value.clone_into(&mut offer.title),
            "version" => value.clone_into(&mut version),
            "linux" => offer.kernel = places.next(),
            "initrd" => {
                let left = INITRD_COUNT_MAX.saturating_sub(offer.initrds.len());
                offer.initrds.extend(places.take(left));
            }
            "options" => {
                for word in &words {
                    if !offer.cmdline.is_empty() {
                        offer.cmdline.push(' ');
                    }
                    offer.cmdline.push_str(word);
                }
            }
            _ => {}
        }
    }
    (version, offer)
}

/// A word, or the words that a variable of GRUB stands for.
fn expanded(word: &str, expand: &dyn Fn(&str) -> String) -> Vec<String> {
    match word.strip_prefix('$') {
        Some(name) if !name.is_empty() => {
            let name = name.trim_start_matches('{').trim_end_matches('}');
            expand(name).split_whitespace().map(str::to_owned).collect()
        }
        _ => vec![word.to_owned()],
    }
}

/// Whether a text matches a pattern with `*` and `?`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where the last star was, and how much of the text it takes.
    let mut star: Option<(usize, usize)> = None;
    while let Some(letter) = text.get(here) {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == letter => {
                at += 1;
                here += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, here) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|letter| *letter == '*')
}

/// Compares versions as they are meant: numbers by their values, `~` before everything.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (segments(a), segments(b));
    a.cmp(&b)
}

/// A part of a version, in the order in which they compare.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Tilde,
    End,
    Letters(String),
    /// By its length without leading zeros first, which is how large it is.
    Number(usize, String),
}

fn segments(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.peek().copied() {
        let mut take = |is_part: fn(&char) -> bool| {
            let mut part = String::new();
            while let Some(letter) = letters.next_if(is_part) {
                part.push(letter);
            }
            part
        };
        if letter.is_ascii_digit() {
            let digits = take(char::is_ascii_digit);
            let digits = digits.trim_start_matches('0').to_owned();
            segments.push(Segment::Number(digits.len(), digits));
        } else if letter.is_alphabetic() {
            segments.push(Segment::Letters(take(|letter| letter.is_alphabetic())));
        } else {
            letters.next();
            if letter == '~' {
                segments.push(Segment::Tilde);
            }
        }
    }
    segments.push(Segment::End);
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::testing::Memory;
    use crate::volumes::testing::volumes;

    #[test]
    fn versions_compare_as_they_are_meant() {
        let mut versions =
            ["6.10.1", "6.9", "6.9~rc1", "6.9-2", "5.99", "6.9.0-10-amd64", "6.9.0-9-amd64"];
        versions.sort_by(|a, b| compare(b, a));
        let expected =
            ["6.10.1", "6.9-2", "6.9.0-10-amd64", "6.9.0-9-amd64", "6.9", "6.9~rc1", "5.99"];
        assert_eq!(versions, expected);
    }

    #[test]
    fn patterns_match() {
        for (pattern, text) in
            [("arch-*", "arch-6.1"), ("*", ""), ("a?c", "abc"), ("*x*y", "axbxcy"), ("a", "a")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("arch-*", "rescue"), ("a?c", "ac"), ("*x", "xy"), ("", "a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
    }

    #[test]
    fn systemd_boot_offers_the_newest_of_its_default_first() {
        let entry = |version: &str| {
            format!(
                "# comment\ntitle   Linux\nversion {version}\nlinux /{version}/linux\n\
                 initrd /ucode\ninitrd /{version}/initrd\noptions root=UUID=1 rw\noptions quiet $x\n"
            )
        };
        let (new, newer) = (entry("6.9"), entry("6.10"));
        let files = [
            ("loader/entries/os-6.9.conf", new.as_str()),
            ("loader/entries/os-6.10+3-1.conf", newer.as_str()),
            ("loader/entries/zz-rescue.conf", "title Rescue\nlinux /rescue\nversion 99\n"),
            ("loader/entries/note.txt", "title x"),
        ];
        let offered = |more: &[(&str, &str)]| {
            let files = [&files[..], more].concat();
            let volumes = volumes(vec![Memory::new("u", &files)]);
            offers(&volumes, 0).unwrap()
        };
        let kernel = |offer: &Offer| offer.kernel.clone().unwrap().path;
        assert_eq!(kernel(&offered(&[])[0]), "/rescue");
        let by_default = offered(&[("loader/loader.conf", "timeout 3\ndefault os-*\n")]);
        let kernels: Vec<_> = by_default.iter().map(kernel).collect();
        assert_eq!(kernels, ["/6.10/linux", "/6.9/linux", "/rescue"]);
        assert_eq!(by_default[0].cmdline, "root=UUID=1 rw quiet");
        let initrds: Vec<_> = by_default[0].initrds.iter().map(|place| &place.path).collect();
        assert_eq!(initrds, ["/ucode", "/6.10/initrd"]);
        let exact = offered(&[("loader/loader.conf", "default os-6.9.conf\n")]);
        assert_eq!(kernel(&exact[0]), "/6.9/linux");
    }
}
