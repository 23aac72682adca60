//! Which entry of a menu is booted: the default first, then the others as they come.
//!
//! `default` is a number, a title or an identity, and for entries of submenus several of them, with `>`
//! in between (GNU GRUB manual, 16.1.10).

use super::GrubError;
use super::run::{Content, Entry, Machine};
use crate::config::{OFFER_COUNT_MAX, Offer};

/// Everything that the menu offers, the default first.
pub(super) fn offers(machine: &mut Machine<'_>) -> Result<Vec<Offer>, GrubError> {
    let menu = machine.entries.clone();
    let default = machine.variable("default").to_owned();
    let mut offers = Vec::new();
    if let Some(entry) = find(machine, &menu, &parts(&default))? {
        add(machine, &entry, &mut offers)?;
    }
    for entry in &menu {
        add(machine, entry, &mut offers)?;
    }
    Ok(offers)
}

/// Adds what an entry offers, or all entries of a submenu do. What was tried is not tried again.
fn add(machine: &mut Machine<'_>, entry: &Entry, offers: &mut Vec<Offer>) -> Result<(), GrubError> {
    if matches!(entry.content, Content::Block { is_submenu: true, .. }) {
        for inner in machine.submenu(entry)? {
            // Menus in menus in menus are nobody's; one below another is Debian's.
            if !matches!(inner.content, Content::Block { is_submenu: true, .. }) {
                add(machine, &inner, offers)?;
            }
        }
        return Ok(());
    }
    let offer = machine.load(entry)?;
    if offers.len() < OFFER_COUNT_MAX && !offers.contains(&offer) {
        offers.push(offer);
    }
    Ok(())
}

/// The entry that a path names; of a submenu that is named without more, its default.
fn find(
    machine: &mut Machine<'_>,
    menu: &[Entry],
    path: &[String],
) -> Result<Option<Entry>, GrubError> {
    let mut menu = menu.to_vec();
    let mut names = path.iter();
    let mut name = names.next().map_or("0", String::as_str);
    loop {
        let Some(entry) = named(&menu, name) else { return Ok(None) };
        if !matches!(entry.content, Content::Block { is_submenu: true, .. }) {
            return Ok(Some(entry.clone()));
        }
        menu = machine.submenu(entry)?;
        name = match names.next() {
            Some(name) => name,
            None => "0",
        };
        // The depth of menus is bounded where they are run, and their number where they are made; a
        // path that has an end bounds the way down its submenus, and defaults of theirs end at one.
        if names.len() == 0 && named(&menu, name).is_some_and(is_submenu) {
            return Ok(None);
        }
    }
}

fn is_submenu(entry: &Entry) -> bool {
    matches!(entry.content, Content::Block { is_submenu: true, .. })
}

fn named<'a>(menu: &'a [Entry], name: &str) -> Option<&'a Entry> {
    let is_it = |entry: &&Entry| (!name.is_empty() && entry.id == name) || entry.title == name;
    let by_number = || menu.get(if name.is_empty() { 0 } else { name.parse::<usize>().ok()? });
    menu.iter().find(is_it).or_else(by_number)
}

/// The parts of a path, in which `>>` is a `>` of a title.
fn parts(path: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = path.chars().peekable();
    while let Some(letter) = letters.next() {
        let is_end = letter == '>' && letters.next_if_eq(&'>').is_none();
        match parts.last_mut() {
            Some(last) if !is_end => last.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fall_apart_at_single_signs() {
        assert_eq!(parts("1>2"), ["1", "2"]);
        assert_eq!(parts("a>>b>c"), ["a>b", "c"]);
        assert_eq!(parts(""), [""]);
    }
}
