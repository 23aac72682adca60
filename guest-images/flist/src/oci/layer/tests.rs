//! One rule of the changeset format after the other, on layers of a few members.

use super::*;
use crate::progress::Quiet;

/// One member: a name whose end tells what it is (`d/`, `link -> target`, `hard => target`), or a
/// file that holds its own layer's letter.
fn layer(members: &[&str]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for member in members {
        let (kind, name, target) = if let Some((name, target)) = member.split_once(" -> ") {
            (::tar::EntryType::Symlink, name, target)
        } else if let Some((name, target)) = member.split_once(" => ") {
            (::tar::EntryType::Link, name, target)
        } else if member.ends_with('/') {
            (::tar::EntryType::Directory, *member, "")
        } else {
            (::tar::EntryType::Regular, *member, "")
        };
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o700);
        let name_field = &mut header.as_gnu_mut().unwrap().name;
        name_field[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_size(if kind.is_file() { 1 } else { 0 });
        header.set_cksum();
        builder.append(&header, if kind.is_file() { &b"x"[..] } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

fn apply(layers: &[&[&str]]) -> Result<Rootfs, LayerError> {
    let mut rootfs = Rootfs::new(TreeLimits::default());
    for members in layers {
        rootfs.apply(layer(members).as_slice(), &Quiet)?;
    }
    Ok(rootfs)
}

/// Paths of the tree; a file with the layer that it came from, a link with its target.
fn tree(layers: &[&[&str]]) -> Vec<String> {
    let (tree, sources) = apply(layers).unwrap().finish();
    let show = |entry: &crate::tree::Entry| {
        let path = printable(&entry.path);
        match (&tree.inode(entry.id).node, &sources[entry.id.index()]) {
            (Node::Directory(_), _) => format!("{path}/"),
            (Node::Symlink(target), _) => format!("{path} -> {}", printable(target)),
            (_, Source::Layer { layer, .. }) => format!("{path}={layer}"),
            _ => path,
        }
    };
    tree.walk().iter().skip(1).map(show).collect()
}

fn rule(layers: &[&[&str]]) -> String {
    let error = apply(layers).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error} {source}")
}

#[test]
fn later_layers_add_and_replace() {
    let found = tree(&[&["./", "./a", "d/", "d/b"], &["d/b", "d/c", "e/f"]]);
    assert_eq!(found, ["a=0", "d/", "d/b=1", "d/c=1", "e/", "e/f=1"]);
}

#[test]
fn a_directory_again_keeps_its_children_and_takes_new_metadata() {
    let rootfs = apply(&[&["d/a"], &["d/"]]).unwrap();
    let id = rootfs.tree().find(b"d").unwrap();
    assert_eq!(rootfs.tree().inode(id).metadata.permissions, 0o700);
    assert!(rootfs.tree().find(b"d/a").is_some());
    let rootfs = apply(&[&["d/a"]]).unwrap();
    let id = rootfs.tree().find(b"d").unwrap();
    assert_eq!(rootfs.tree().inode(id).metadata.permissions, IMPLICIT_DIRECTORY_PERMISSIONS);
}

#[test]
fn a_file_over_a_directory_drops_what_was_below() {
    assert_eq!(tree(&[&["d/a/b"], &["d"], &["d/", "d/c"]]), ["d/", "d/c=2"]);
    assert_eq!(tree(&[&["d/a/b"], &["d"]]), ["d=1"]);
}

#[test]
fn whiteouts_hide_lower_names_only() {
    assert_eq!(tree(&[&["a", "b", "d/x"], &[".wh.a", ".wh.d", ".wh.none"]]), ["b=0"]);
    assert_eq!(tree(&[&["a"], &["a", ".wh.a"]]), ["a=1"]);
    assert_eq!(tree(&[&["a"], &[".wh.a", "a"]]), ["a=1"]);
    assert_eq!(tree(&[&["d/old"], &["d/", "d/new", ".wh.d"]]), ["d/", "d/new=1"]);
    assert_eq!(tree(&[&["d/old"], &[".wh.d", "d/new"]]), ["d/", "d/new=1"]);
    assert_eq!(tree(&[&["a"], &[".wh.a"], &["a"]]), ["a=2"]);
}

#[test]
fn an_opaque_directory_hides_lower_children_wherever_the_mark_stands() {
    let lower: &[&str] = &["d/old", "d/sub/old", "d/gone/x", "other"];
    let expected = ["d/", "d/new=1", "d/sub/", "d/sub/new=1", "other=0"];
    for upper in [
        &["d/", "d/.wh..wh..opq", "d/new", "d/sub/", "d/sub/new"],
        &["d/", "d/new", "d/.wh..wh..opq", "d/sub/", "d/sub/new"],
        &["d/", "d/new", "d/sub/", "d/sub/new", "d/.wh..wh..opq"],
    ] {
        assert_eq!(tree(&[lower, upper]), expected);
    }
    assert_eq!(tree(&[&["a", "b/c"], &["n", ".wh..wh..opq"]]), ["n=1"]);
}

#[test]
fn a_directory_that_replaces_a_link_is_the_one_that_its_opaque_mark_means() {
    let lower: &[&str] = &["usr/lib/keep", "lib -> usr/lib"];
    let expected = ["lib/", "lib/new=1", "usr/", "usr/lib/", "usr/lib/keep=0"];
    for upper in
        [&["lib/", "lib/.wh..wh..opq", "lib/new"], &["lib/.wh..wh..opq", "lib/", "lib/new"]]
    {
        assert_eq!(tree(&[lower, upper]), expected);
    }
}

#[test]
fn names_behind_links_are_resolved_inside_the_tree() {
    let lower: &[&str] = &["usr/lib/a", "lib -> usr/lib", "abs -> /usr", "up -> ../../usr"];
    let found = tree(&[lower, &["lib/b", "abs/c", "up/d", "lib/.wh.a"]]);
    let links = ["abs -> /usr", "lib -> usr/lib", "up -> ../../usr"];
    assert_eq!(
        found,
        [&links[..], &["usr/", "usr/c=1", "usr/d=1", "usr/lib/", "usr/lib/b=1"]].concat()
    );
    // A link into nothing makes what it names.
    assert_eq!(tree(&[&["l -> x/y", "l/f"]]), ["l -> x/y", "x/", "x/y/", "x/y/f=0"]);
}

#[test]
fn the_last_component_is_not_followed() {
    assert_eq!(tree(&[&["usr/", "l -> usr"], &["l"]]), ["l=1", "usr/"]);
    assert_eq!(tree(&[&["usr/", "l -> usr"], &["l/"]]), ["l/", "usr/"]);
}

#[test]
fn hard_links_share_an_inode_until_one_name_is_replaced() {
    let rootfs = apply(&[&["a", "b => a"], &["c => ./a", "a"]]).unwrap();
    let find = |path: &[u8]| rootfs.tree().find(path).unwrap();
    assert_eq!(find(b"b"), find(b"c"));
    assert_ne!(find(b"a"), find(b"b"));
    assert_eq!(tree(&[&["a", "b => a"], &["a"]]), ["a=1", "b=0"]);
    // Hiding one name keeps the other; a link to itself changes nothing.
    assert_eq!(tree(&[&["a", "b => a"], &[".wh.a"]]), ["b=0"]);
    assert_eq!(tree(&[&["a", "a => a"]]), ["a=0"]);
    assert_eq!(tree(&[&["s -> x", "t => s"]]), ["s -> x", "t -> x"]);
    assert_eq!(tree(&[&["u/f", "l -> u", "g => l/f"]]), ["g=0", "l -> u", "u/", "u/f=0"]);
}

#[test]
fn a_hard_link_that_replaces_its_targets_directory_keeps_the_file() {
    assert_eq!(tree(&[&["d/f", "d => d/f"]]), ["d=0"]);
}

#[test]
fn bad_names_are_refused() {
    for (member, expected) in [
        ("../x", "\"..\" in a name"),
        ("a/../../x", "\"..\" in a name"),
        ("/etc/x", "an absolute name"),
        ("//x", "an absolute name"),
        ("x => /etc/passwd", "an absolute name"),
        ("x => ../a", "\"..\" in a name"),
        ("x => nothing", "does not exist"),
        ("x => .", "hard link to a directory"),
        (".wh...", "no valid name"),
        (".wh..", "no valid name"),
        (".wh.", "no valid name"),
        ("./", ""),
        (". -> x", "the root is not a directory"),
        ("x -> ", "link target must be"),
    ] {
        if expected.is_empty() {
            assert!(apply(&[&[member]]).is_ok(), "{member}");
        } else {
            let found = rule(&[&[member]]);
            assert!(found.contains(expected), "{member}: {found}");
        }
    }
    assert!(apply(&[&["/", "a"]]).is_ok());
    assert!(rule(&[&["d/", "x => d"]]).contains("hard link to a directory"));
    assert!(rule(&[&["f", "f/x"]]).contains("\"f\" on its way is not a directory"));
}

#[test]
fn cycles_of_links_end() {
    assert!(rule(&[&["a -> b", "b -> a", "a/x"]]).contains("cycle"));
    assert!(rule(&[&["a -> a/a", "a/x"]]).contains("cycle"));
    assert!(rule(&[&["a -> a", "x => a/x"]]).contains("cycle"));
    // Nothing is hidden behind one.
    assert_eq!(tree(&[&["a -> a"], &["a/.wh.x"]]), ["a -> a"]);
}

#[test]
fn bookkeeping_of_old_builders_is_skipped() {
    assert_eq!(tree(&[&[".wh..wh.aufs", ".wh..wh.plnk/12.34", "a"]]), ["a=0"]);
}

#[test]
fn limits_are_named() {
    let limits = TreeLimits { entry_count_max: 2, ..TreeLimits::default() };
    let mut rootfs = Rootfs::new(limits);
    let error = rootfs.apply(layer(&["a", "b", "c"]).as_slice(), &Quiet).unwrap_err();
    assert_eq!(error.to_string(), "the image has more than 2 entries in its layers");
    let limits = TreeLimits { inode_count_max: 5, ..TreeLimits::default() };
    let error = Rootfs::new(limits).apply(layer(&["a/b/c/d/e/f"]).as_slice(), &Quiet).unwrap_err();
    assert_eq!(error.to_string(), "the image has more than 5 inodes");
    let limits = TreeLimits { contents_size_max: 1, ..TreeLimits::default() };
    let error = Rootfs::new(limits).apply(layer(&["a", "b"]).as_slice(), &Quiet).unwrap_err();
    assert_eq!(error.to_string(), "the image has more than 1 bytes of contents");
}
