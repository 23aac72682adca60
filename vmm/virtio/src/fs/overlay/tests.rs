//! What other threads of the guest do between two steps of one of ours.

use std::sync::{Arc, OnceLock, Weak};

use flist_view::block::{BlockData, BlockError, BlockRef, BlockSource};
use flist_view::filesystem::{Creation, Errno, FileSystem, Ino, ROOT};

use super::{Overlay, OverlayOptions};
use crate::fs::GuestFileSystem;
use crate::fs::tests::image::{Blocks, Image};
use crate::fs::tests::overlay::prefix;

fn overlay(image: &Image) -> (Overlay, tempfile::TempDir) {
    let volume = tempfile::tempdir().unwrap();
    let options = OverlayOptions { marks: prefix(), quota: None };
    (Overlay::open(image.view(), volume.path(), options).unwrap(), volume)
}

/// Finds `name`, lets others do something, and learns.
fn learn_late(overlay: &Overlay, name: &[u8], meanwhile: impl FnOnce(Ino)) -> Option<Ino> {
    let (place, version) = {
        let tree = overlay.tree();
        (tree.place(ROOT).unwrap(), tree.version())
    };
    let found = overlay.find(place, name).unwrap();
    meanwhile(found.ino);
    let learned = overlay.learn_since(version, ROOT, name, found).unwrap();
    learned.map(|attributes| attributes.ino)
}

#[test]
fn what_was_found_is_not_believed_once_others_changed_it() {
    let image = Image::default().file("a", "below").file("b", "below");
    let (overlay, _volume) = overlay(&image);
    let copied_and_forgotten = learn_late(&overlay, b"a", |ino| {
        overlay.lookup(ROOT, b"a").unwrap();
        overlay.upper_of(ino).unwrap();
        overlay.forget(ino, 1);
    });
    assert_eq!(copied_and_forgotten, None);
    let ino = overlay.lookup(ROOT, b"a").unwrap().ino;
    assert!(overlay.place(ino).unwrap().upper.is_some());
    let removed = learn_late(&overlay, b"b", |_| overlay.unlink(ROOT, b"b").unwrap());
    assert_eq!((removed, overlay.lookup(ROOT, b"b")), (None, Err(Errno::NOENT)));
    assert_eq!(learn_late(&overlay, b"a", |_| ()), Some(ino));
}

/// Blocks that are read while the guest forgets whose they are.
struct Forgetful {
    blocks: Blocks,
    overlay: Arc<OnceLock<(Weak<Overlay>, Ino)>>,
}

impl BlockSource for Forgetful {
    fn block(&self, position: u32, block: &BlockRef) -> Result<BlockData, BlockError> {
        if let Some((overlay, ino)) = self.overlay.get() {
            overlay.upgrade().expect("it reads").forget(*ino, 1);
        }
        self.blocks.block(position, block)
    }
}

#[test]
fn a_copy_that_was_forgotten_meanwhile_is_not_kept() {
    let volume = tempfile::tempdir().unwrap();
    let reached = Arc::new(OnceLock::new());
    let source = |blocks| {
        let overlay = Arc::clone(&reached);
        Arc::new(Forgetful { blocks, overlay }) as Arc<dyn BlockSource>
    };
    let view = Image::default().file("a", "below").view_with(source);
    let options = OverlayOptions { marks: prefix(), quota: None };
    let overlay = Arc::new(Overlay::open(view, volume.path(), options).unwrap());
    let known = |overlay: &Overlay| {
        let saved = overlay.upper.save().unwrap();
        saved["nodes"].as_array().unwrap().len()
    };
    let before = known(&overlay);
    let ino = overlay.lookup(ROOT, b"a").unwrap().ino;
    reached.set((Arc::downgrade(&overlay), ino)).unwrap();
    assert_eq!(overlay.upper_of(ino), Err(Errno::STALE));
    assert_eq!(known(&overlay), before);
    let found = overlay.lookup(ROOT, b"a").unwrap();
    assert!(overlay.place(found.ino).unwrap().upper.is_some(), "the copy is in its place");
}

/// As overlayfs has it: nobody could tell it from a whiteout. Every other number is as good as any.
#[test]
fn character_devices_have_any_number_but_that_of_a_whiteout() {
    let (overlay, _volume) = overlay(&Image::default());
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let device = |rdev| Creation { mode: 0o020_644, rdev, uid, gid };
    assert_eq!(overlay.create(ROOT, b"null", &device((0, 0))), Err(Errno::PERM));
    for (number, rdev) in [(0, 1), (1, 0), (1, 3), (10, 232), (4095, 255)].into_iter().enumerate() {
        let name = format!("{number}");
        match overlay.create(ROOT, name.as_bytes(), &device(rdev)) {
            Ok(made) => assert_eq!(made.rdev, rdev),
            Err(Errno::PERM) => return eprintln!("skipped: devices need CAP_MKNOD"),
            Err(error) => panic!("{rdev:?}: {error}"),
        }
        assert_eq!(overlay.lookup(ROOT, name.as_bytes()).unwrap().rdev, rdev);
    }
}
