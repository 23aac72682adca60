//! The recorded images (`ci/vectors/flist`) against the trees that they were made from: read, fetch,
//! unpack, verify, clone, and write again.
//!
//! Comparing owners and devices of an unpacked tree needs root; without it that part says so and
//! passes. So does the check by an independent reader where `python3` with `cryptography` is missing
//! (`ci/setup` installs both).

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use flist::block::Codec;
use flist::clone::{clone_blocks, with_routes};
use flist::format::{Image, Route, fl};
use flist::inspect::{listing, summary};
use flist::progress::Quiet;
use flist::store::fetch::{Fetcher, RetryOptions};
use flist::store::route::{StoreOptions, Stores};
use flist::store::url::RouteSpec;
use flist::tree::{Inode, Node};
use flist::unpack::{UnpackError, UnpackOptions, unpack};
use flist::verify::{VerifyError, verify};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// One recorded image.
struct Vector {
    image: &'static str,
    manifest: &'static str,
    /// `{}` stands for the folder of the vectors.
    stores: &'static [&'static str],
    /// The legacy format keeps permission bits, and times modulo 2^32; its root has no time.
    is_legacy: bool,
}

const VECTORS: [Vector; 3] = [
    Vector {
        image: "sample.fl",
        manifest: "sample.manifest.json",
        stores: &["dir://{}/sample-store"],
        is_legacy: false,
    },
    Vector {
        image: "sharded.fl",
        manifest: "sharded.manifest.json",
        stores: &["00-7f=dir://{}/sharded-stores/a", "80-ff=dir://{}/sharded-stores/b"],
        is_legacy: false,
    },
    Vector {
        image: "legacy.flist",
        manifest: "legacy.manifest.json",
        stores: &["dir://{}/legacy-store"],
        is_legacy: true,
    },
];

impl Vector {
    fn path(&self) -> PathBuf {
        folder().join(self.image)
    }

    fn open(&self) -> Image {
        Image::open(&self.path()).unwrap()
    }

    fn fetcher(&self, image: &Image) -> Fetcher {
        let folder = folder().display().to_string();
        let specs: Vec<_> = self.stores.iter().map(|spec| spec.replace("{}", &folder)).collect();
        fetcher(image, &specs)
    }

    fn manifest(&self) -> BTreeMap<String, Value> {
        let text = fs::read_to_string(folder().join(self.manifest)).unwrap();
        let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
        let path = |entry: &Value| entry["path"].as_str().unwrap().to_owned();
        entries.into_iter().map(|entry| (path(&entry), entry)).collect()
    }

    /// Compares `found` with the manifest, field by field.
    fn compare(&self, found: &BTreeMap<String, Found>) {
        let manifest = self.manifest();
        let mut differences = String::new();
        for path in manifest.keys().filter(|path| !found.contains_key(*path)) {
            writeln!(differences, "{path}: missing").unwrap();
        }
        for (path, found) in found {
            match manifest.get(path) {
                None => writeln!(differences, "{path}: not in the manifest").unwrap(),
                Some(wanted) => self.compare_entry(path, found, wanted, &mut differences),
            }
        }
        assert!(differences.is_empty(), "{}:\n{differences}", self.image);
        assert!(manifest.len() > 30, "the manifest was read");
    }

    fn compare_entry(&self, path: &str, found: &Found, wanted: &Value, differences: &mut String) {
        let mut check = |field: &str, found: Value, wanted: Value| {
            if found != wanted {
                writeln!(differences, "{path}: {field} is {found}, must be {wanted}").unwrap();
            }
        };
        let mode = u32::from_str_radix(wanted["mode"].as_str().unwrap(), 8).unwrap();
        let mtime = wanted["mtime"].as_i64().unwrap();
        // The legacy writer packs a pipe as a socket.
        let is_lost = self.is_legacy && mode & 0o170_000 == 0o010_000;
        let mode_mask = if is_lost { 0o7777 } else { u32::MAX };
        check("mode", (found.mode & mode_mask).into(), (mode & mode_mask).into());
        check("uid", found.uid.into(), wanted["uid"].clone());
        check("gid", found.gid.into(), wanted["gid"].clone());
        if !self.is_legacy {
            check("mtime", found.mtime.into(), mtime.into());
        } else if path != "/" {
            check("mtime", found.mtime.into(), (mtime & 0xffff_ffff).into());
        }
        if mode & 0o170_000 == 0o100_000 {
            check("size", found.size.into(), wanted["size"].clone());
            check("sha256", found.sha256.clone().into(), wanted["sha256"].clone());
        }
        check("target", found.target.clone().into(), wanted["target"].clone());
        check("rdev", serde_json::to_value(found.rdev).unwrap(), wanted["rdev"].clone());
    }
}

/// What an image or a file system says of one entry.
struct Found {
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    sha256: Option<String>,
    target: Option<String>,
    rdev: Option<(u32, u32)>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/vectors/flist").canonicalize().unwrap()
}

fn routes(specs: &[String]) -> Vec<Route> {
    specs.iter().map(|spec| RouteSpec::parse(spec).unwrap().into()).collect()
}

fn fetcher(image: &Image, specs: &[String]) -> Fetcher {
    let stores = Stores::new(&routes(specs), &StoreOptions::default());
    Fetcher::new(stores, image.cipher, RetryOptions::default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_image(image: &Image, fetcher: &Fetcher) -> BTreeMap<String, Found> {
    let mut codec = Codec::new();
    let entries = image.tree.walk().into_iter().map(|entry| {
        let inode = image.tree.inode(entry.id);
        let path = format!("/{}", String::from_utf8(entry.path).unwrap());
        (path, found_inode(inode, fetcher, &mut codec))
    });
    entries.collect()
}

fn found_inode(inode: &Inode, fetcher: &Fetcher, codec: &mut Codec) -> Found {
    let mut found = Found {
        mode: inode.mode(),
        uid: inode.metadata.uid,
        gid: inode.metadata.gid,
        size: 0,
        mtime: inode.metadata.mtime.seconds,
        sha256: None,
        target: None,
        rdev: None,
    };
    match &inode.node {
        Node::File(contents) => {
            let mut hash = Sha256::new();
            for block in &contents.blocks {
                let plaintext = fetcher.fetch(codec, block).unwrap();
                found.size += plaintext.len() as u64;
                hash.update(&plaintext);
            }
            assert_eq!(found.size, contents.size);
            found.sha256 = Some(hex(&hash.finalize()));
        }
        Node::Symlink(target) => found.target = Some(String::from_utf8(target.clone()).unwrap()),
        Node::CharacterDevice(device) | Node::BlockDevice(device) => {
            found.rdev = Some((device.major, device.minor));
        }
        _ => {}
    }
    found
}

fn from_disk(root: &Path) -> BTreeMap<String, Found> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let inside = path.strip_prefix(root).unwrap().to_str().unwrap();
        entries.insert(format!("/{inside}"), found_on_disk(&path, &metadata));
    }
    entries
}

fn found_on_disk(path: &Path, metadata: &fs::Metadata) -> Found {
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() || kind.is_block_device();
    let rdev = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let target = || fs::read_link(path).unwrap().into_os_string().into_string().unwrap();
    Found {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: metadata.size(),
        mtime: metadata.mtime(),
        sha256: kind.is_file().then(|| hex(&Sha256::digest(fs::read(path).unwrap()))),
        target: kind.is_symlink().then(target),
        rdev: is_device.then_some(rdev),
    }
}

fn is_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: {what} needs root");
    }
    is_root
}

#[test]
fn every_image_says_and_holds_what_its_manifest_says() {
    for vector in VECTORS {
        let image = vector.open();
        vector.compare(&from_image(&image, &vector.fetcher(&image)));
    }
}

#[test]
fn an_unpacked_image_is_the_tree_that_was_packed() {
    if !is_root("comparing owners and devices") {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    for vector in VECTORS {
        let image = vector.open();
        let destination = temporary.path().join(vector.image);
        let options = UnpackOptions::default();
        let report =
            unpack(&image, &vector.fetcher(&image), &destination, &options, &Quiet).unwrap();
        assert_eq!(report.notes, Vec::<String>::new());
        assert_eq!(report.entry_count, image.tree.walk().len());
        vector.compare(&from_disk(&destination));
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1, "nothing partial stays");
        fs::remove_dir_all(&destination).unwrap();
    }
}

#[test]
fn routes_and_tags() {
    let sample = VECTORS[0].open();
    assert_eq!(sample.tags["author"], "flisth");
    assert_eq!(sample.routes[0].url.to_string(), "dir:///samples/upstream/s1/store");
    let sharded = VECTORS[1].open();
    let ranges: Vec<_> = sharded.routes.iter().map(|route| (route.start, route.end)).collect();
    assert_eq!(ranges, [(0, 127), (128, 255)]);
    let legacy = VECTORS[2].open();
    assert_eq!(legacy.tags["entrypoint"], r#"["/bin/app", "-v"]"#);
    assert!(!legacy.tags.contains_key("backend"), "it can hold a password");
    assert_eq!(legacy.routes[0].url.to_string(), "zdb://hub.example.invalid:9900");
    let summary = summary(&sample, &VECTORS[0].path()).unwrap();
    assert_eq!((summary.entry_count, summary.inodes.file, summary.inodes.symlink), (401, 337, 8));
    assert_eq!((summary.block_count, summary.distinct_block_count), (349, 338));
}

#[test]
fn what_we_write_is_read_back_identical() {
    let temporary = tempfile::tempdir().unwrap();
    for vector in VECTORS.iter().filter(|vector| !vector.is_legacy) {
        let image = vector.open();
        let path = temporary.path().join(vector.image);
        fl::write(&image, &path).unwrap();
        let again = Image::open(&path).unwrap();
        assert_eq!(listing(&again), listing(&image));
        assert_eq!(again.routes, image.routes);
        let blocks = |image: &Image| {
            let of = |entry: flist::tree::Entry| match &image.tree.inode(entry.id).node {
                Node::File(contents) => contents.blocks.clone(),
                _ => Vec::new(),
            };
            image.tree.walk().into_iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(blocks(&again), blocks(&image));
    }
}

/// Columns (name, type, primary key) and indexes (name, column) of the tables that all readers share.
fn schema(path: &Path) -> Vec<(String, String, String)> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let sql = "SELECT m.name, c.name, upper(c.type) || c.pk FROM sqlite_master m, \
               pragma_table_xinfo(m.name) c WHERE m.type = 'table' AND m.name IN \
               ('inode', 'extra', 'block', 'tag', 'route', 'sqlite_sequence') \
               UNION ALL SELECT m.name, m.tbl_name, c.name FROM sqlite_master m, \
               pragma_index_info(m.name) c WHERE m.type = 'index' ORDER BY 1, 2, 3";
    let mut statement = connection.prepare(sql).unwrap();
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_common_tables_that_we_write_are_exactly_upstreams() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("sample.fl");
    fl::write(&VECTORS[0].open(), &path).unwrap();
    let upstream = schema(&VECTORS[0].path());
    assert_eq!(schema(&path), upstream);
    assert_eq!(upstream.len(), 26, "columns and indexes were found");
}

#[test]
fn what_we_write_is_read_by_an_independent_reader() {
    let python = Command::new("python3").args(["-c", "import cryptography"]).output();
    if !python.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 with cryptography is missing; ci/setup installs it");
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let vector = &VECTORS[0];
    let path = temporary.path().join("sample.fl");
    fl::write(&vector.open(), &path).unwrap();
    let output = Command::new("python3")
        .arg(folder().join("../../check/flist_verify.py"))
        .arg("fl")
        .arg(&path)
        .arg(folder().join("sample-store"))
        .arg(folder().join(vector.manifest))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "401 entries, 0 differences\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_clone_has_every_block_and_its_image_names_the_new_stores() {
    let temporary = tempfile::tempdir().unwrap();
    let vector = &VECTORS[0];
    let image = vector.open();
    let specs: Vec<_> = [("00-7f", "low"), ("80-ff", "high")]
        .map(|(range, name)| format!("{range}=dir://{}/{name}", temporary.path().display()))
        .into();
    let stores = Stores::open_for_writing(&routes(&specs), &StoreOptions::default()).unwrap();
    let report = clone_blocks(&image, &vector.fetcher(&image), &stores, None, &Quiet).unwrap();
    assert_eq!(report.block_count, 338);
    let path = temporary.path().join("clone.fl");
    fl::write(&with_routes(&image, routes(&specs)), &path).unwrap();
    let clone = Image::open(&path).unwrap();
    let stores = Stores::new(&clone.routes, &StoreOptions::default());
    let fetcher = Fetcher::new(stores, clone.cipher, RetryOptions::default());
    let verified = verify(&clone, &fetcher, None, &Quiet).unwrap();
    assert_eq!((verified.good_count, verified.problems.len()), (338, 0));
}

/// A copy of the sample's store, in which `spoil` changes a block of several files' worth.
fn spoiled(spoil: impl FnOnce(&Path)) -> (tempfile::TempDir, String, Fetcher, Image) {
    let temporary = tempfile::tempdir().unwrap();
    let image = VECTORS[0].open();
    let url = format!("dir://{}/store", temporary.path().display());
    let specs = [url];
    let stores = Stores::open_for_writing(&routes(&specs), &StoreOptions::default()).unwrap();
    clone_blocks(&image, &VECTORS[0].fetcher(&image), &stores, None, &Quiet).unwrap();
    let id = image.tree.find(b"small.txt").unwrap();
    let Node::File(contents) = &image.tree.inode(id).node else { panic!("not a file") };
    let name = contents.blocks[0].id.to_string();
    spoil(&temporary.path().join("store").join(&name[..2]).join(&name));
    let fetcher = fetcher(&image, &specs);
    (temporary, name, fetcher, image)
}

#[test]
fn bad_and_missing_blocks_are_reported_by_id_and_by_file() {
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[0] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    for (name, fetcher, image, _temporary) in [spoiled(flip), spoiled(remove)]
        .map(|(temporary, name, fetcher, image)| (name, fetcher, image, temporary))
    {
        let report = verify(&image, &fetcher, None, &Quiet).unwrap();
        assert_eq!(report.problems.len(), 1);
        assert_eq!(report.good_count, report.block_count - 1);
        assert_eq!(report.problems[0].block, name);
        assert!(report.problems[0].files.contains(&"/small.txt".to_owned()));
    }
}

#[test]
fn verification_gives_up_on_stores_that_do_not_answer() {
    let image = VECTORS[0].open();
    // Nobody listens on port 1.
    let stores = Stores::new(&routes(&["zdb://127.0.0.1:1".to_owned()]), &StoreOptions::default());
    let retry = RetryOptions { round_count_max: 1, ..RetryOptions::default() };
    let fetcher = Fetcher::new(stores, image.cipher, retry);
    let error = verify(&image, &fetcher, None, &Quiet).unwrap_err();
    assert!(matches!(error, VerifyError::Unreachable(_)), "{error}");
    assert!(fetcher.counters().stores[0].failed < 20, "far from all blocks were tried");
}

#[test]
fn a_bad_block_leaves_no_tree_and_names_file_and_block() {
    let (temporary, name, fetcher, image) = spoiled(|path| fs::write(path, b"lies").unwrap());
    let destination = temporary.path().join("tree");
    let options = UnpackOptions::default();
    let error = unpack(&image, &fetcher, &destination, &options, &Quiet).unwrap_err();
    let UnpackError::Block { number: 0, source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains(&name), "{source}");
    let left: Vec<_> =
        fs::read_dir(temporary.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["store"], "neither the tree nor a part of it");
}

#[test]
fn only_an_absent_or_empty_directory_is_unpacked_into() {
    let temporary = tempfile::tempdir().unwrap();
    let vector = &VECTORS[1];
    let image = vector.open();
    let fetcher = vector.fetcher(&image);
    let unpack = |path: &Path| unpack(&image, &fetcher, path, &UnpackOptions::default(), &Quiet);
    let [full, file, empty] = ["full", "file", "empty"].map(|name| temporary.path().join(name));
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "kept").unwrap();
    fs::write(&file, "kept").unwrap();
    fs::create_dir(&empty).unwrap();
    assert!(matches!(unpack(&full), Err(UnpackError::Destination { .. })));
    assert!(matches!(unpack(&file), Err(UnpackError::Destination { .. })));
    assert!(matches!(
        unpack(&temporary.path().join("missing/tree")),
        Err(UnpackError::Folder { source, .. }) if source.kind() == io::ErrorKind::NotFound
    ));
    unpack(&empty).unwrap();
    assert!(empty.join("small.txt").exists());
    assert_eq!(fs::read_to_string(full.join("mine")).unwrap(), "kept");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 3);
}

#[test]
fn ctrl_c_is_an_error_that_leaves_nothing() {
    struct Stop;
    impl flist::progress::Progress for Stop {
        fn begin(&self, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
        fn note(&self, _: &str) {}
        fn check(&self) -> Result<(), flist::progress::Cancelled> {
            Err(flist::progress::Cancelled)
        }
    }
    let temporary = tempfile::tempdir().unwrap();
    let vector = &VECTORS[1];
    let image = vector.open();
    let path = temporary.path().join("tree");
    let options = UnpackOptions::default();
    let result = unpack(&image, &vector.fetcher(&image), &path, &options, &Stop);
    assert!(matches!(result, Err(UnpackError::Cancelled(_))));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn links_that_lead_out_are_made_and_never_followed() {
    use flist::tree::{Directory, FileContents, InodeId, Metadata};
    let temporary = tempfile::tempdir().unwrap();
    let outside = temporary.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o750)).unwrap();
    let mut image = VECTORS[1].open();
    let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
    let mut add = |parent, name: &[u8], node| {
        image.tree.add(parent, name, Inode::new(metadata, node)).unwrap()
    };
    let target = outside.as_os_str().as_bytes().to_vec();
    add(InodeId::ROOT, b"escape", Node::Symlink(target));
    add(InodeId::ROOT, b"up", Node::Symlink(b"../outside".to_vec()));
    let folder = add(InodeId::ROOT, b"z", Node::Directory(Directory::with_size(0)));
    add(folder, b"escape", Node::File(FileContents::default()));
    let path = temporary.path().join("tree");
    let options = UnpackOptions::default();
    unpack(&image, &VECTORS[1].fetcher(&image), &path, &options, &Quiet).unwrap();
    assert_eq!(fs::read_link(path.join("escape")).unwrap(), outside);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let mode = fs::metadata(&outside).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750, "a link's mode is not its target's");
}

#[test]
fn links_attributes_nanoseconds_and_holes_survive() {
    use flist_view::filesystem::Timestamp;
    let temporary = tempfile::tempdir().unwrap();
    let vector = &VECTORS[1];
    let mut image = vector.open();
    let id = image.tree.find(b"small.txt").unwrap();
    image.tree.link(flist::tree::InodeId::ROOT, b"other", id).unwrap();
    let inode = image.tree.inode_mut(id);
    inode.metadata.mtime = Timestamp { seconds: -5, nanoseconds: 123_456_789 };
    inode.xattrs.insert(b"user.flist".to_vec(), b"value\0".to_vec());
    let path = temporary.path().join("tree");
    let options = UnpackOptions::default();
    let report = unpack(&image, &vector.fetcher(&image), &path, &options, &Quiet).unwrap();
    let [one, other] = ["small.txt", "other"].map(|name| path.join(name).metadata().unwrap());
    assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
    assert_eq!((one.mtime(), one.mtime_nsec()), (-5, 123_456_789));
    let mut value = [0u8; 16];
    match rustix::fs::getxattr(path.join("other"), "user.flist", &mut value[..]) {
        Ok(size) => assert_eq!(&value[..size], b"value\0"),
        Err(error) => {
            assert!(report.notes.iter().any(|note| note.contains("user.flist")), "{error}");
        }
    }
    let zeros = path.join("zeros-1m").metadata().unwrap();
    assert_eq!((zeros.size(), zeros.blocks()), (1 << 20, 0), "a hole");
}
