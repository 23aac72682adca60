//! What an image describes is what comes out, whichever way it lies on disk.

use std::process::Command;

use serde_json::json;
use tar::EntryType;
use tempfile::TempDir;

use super::image::{Compression, Image, Layer};
use super::{chain, convert, listing, options};
use flist::oci::convert as convert_image;
use flist::progress::Quiet;

/// Three layers with everything that layers can hold.
fn image() -> Image {
    let long = format!("{}/{}", "long-name".repeat(12), "f".repeat(200));
    let base = Layer::new()
        .directory("./", 0o755)
        .directory("bin/", 0o755)
        .file("bin/tool", b"tool 1")
        .hard_link("bin/alias", "bin/tool")
        .directory("etc/", 0o755)
        .file("etc/keep", b"kept")
        .file("etc/drop", b"dropped")
        .directory("opaque/", 0o700)
        .file("opaque/old", b"old")
        .symlink("lib", "usr/lib")
        .directory("usr/", 0o755)
        .directory("usr/lib/", 0o755)
        .device("dev/console", EntryType::Char, 5, 1)
        .device("dev/disk", EntryType::Block, 259, 70_000)
        .device("dev/pipe", EntryType::Fifo, 0, 0)
        .file(&long, b"far away");
    let middle = Layer::new()
        .file("etc/.wh.drop", b"")
        .file("bin/tool", b"tool 2")
        .file("opaque/before", b"before")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/after", b"after")
        .file("lib/so", b"library")
        .pax(&[
            ("mtime", b"1700000000.123456789"),
            ("uid", b"3000000000"),
            ("SCHILY.xattr.security.capability", b"\x01\n\0="),
            ("SCHILY.xattr.user.empty", b""),
        ])
        .member(EntryType::Regular, "bin/ping", 0o4755, b"ping", |_| {});
    let top = Layer::new()
        .pax(&[("GNU.sparse.size", b"12"), ("GNU.sparse.map", b"2,2,8,2")])
        .file("sparse", b"abcd")
        .member(EntryType::Directory, "etc/", 0o711, b"", |header| {
            header.set_uid(7);
            header.set_gid(8);
        })
        .hard_link("etc/linked", "bin/alias");
    Image::new(json!({
        "Entrypoint": ["/bin/tool"], "Cmd": ["--serve"], "Env": ["PATH=/bin"],
        "WorkingDir": "/etc", "User": "7:8", "ExposedPorts": {"80/tcp": {}},
    }))
    .layer(&base.finish(), Compression::Gzip)
    .layer(&middle.finish(), Compression::Zstd)
    .layer(&top.finish(), Compression::Plain)
}

fn expected() -> Vec<String> {
    let folder = "long-name".repeat(12);
    let startup = r#""[startup.entry]\nname = \"core.system\"\n\n[startup.entry.args]\nname = \"/bin/tool\"\nargs = [\"--serve\"]\ndir = \"/etc\"\n\n[startup.entry.args.env]\nPATH = \"/bin\"\n""#;
    let time = "0:0 1600000000.000000000";
    let implicit = "755 0:0 0.000000000 dir";
    let mut lines = vec![
        format!("/ 755 {time} dir"),
        format!("/.startup.toml 644 0:0 0.000000000 file x1 {startup}"),
        format!("/bin 755 {time} dir"),
        format!("/bin/alias 644 {time} file x2 \"tool 1\""),
        "/bin/ping 4755 3000000000:0 1700000000.123456789 file x1 \"ping\" \
         security.capability=[1, 10, 0, 61] user.empty=[]"
            .to_owned(),
        format!("/bin/tool 644 {time} file x1 \"tool 2\""),
        format!("/dev {implicit}"),
        format!("/dev/console 620 {time} char 5:1"),
        format!("/dev/disk 620 {time} block 259:70000"),
        format!("/dev/pipe 620 {time} fifo"),
        "/etc 711 7:8 1600000000.000000000 dir".to_owned(),
        format!("/etc/keep 644 {time} file x1 \"kept\""),
        format!("/etc/linked 644 {time} file x2 \"tool 1\""),
        format!("/lib 777 {time} -> usr/lib"),
        format!("/{folder} {implicit}"),
        format!("/{folder}/{} 644 {time} file x1 \"far away\"", "f".repeat(200)),
        format!("/opaque 700 {time} dir"),
        format!("/opaque/after 644 {time} file x1 \"after\""),
        format!("/opaque/before 644 {time} file x1 \"before\""),
        format!("/sparse 644 {time} file x1 \"\\0\\0ab\\0\\0\\0\\0cd\\0\\0\""),
        format!("/usr 755 {time} dir"),
        format!("/usr/lib 755 {time} dir"),
        format!("/usr/lib/so 644 {time} file x1 \"library\""),
    ];
    lines.sort();
    lines
}

#[test]
fn a_layout_directory_becomes_its_tree() {
    let (mut image, folder) = (image(), TempDir::new().unwrap());
    let manifest = image.seal();
    image.write_layout(folder.path(), std::slice::from_ref(&manifest));
    let converted = convert(folder.path()).unwrap();
    let mut found = listing(&converted);
    found.sort();
    assert_eq!(found, expected());
    assert_eq!(converted.tags["oci.digest"], manifest["digest"].as_str().unwrap());
    assert_eq!((&*converted.tags["oci.user"], &*converted.tags["oci.ports"]), ("7:8", "80/tcp"));
}

#[test]
fn tars_give_the_same_tree() {
    let (mut image, folder) = (image(), TempDir::new().unwrap());
    let manifest = image.seal();
    image.write_layout_tar(&folder.path().join("layout.tar"), &[manifest]);
    image.write_docker_save(&folder.path().join("save.tar.gz"), &["example/x:1"]);
    for name in ["layout.tar", "save.tar.gz"] {
        let mut found = listing(&convert(&folder.path().join(name)).unwrap());
        found.sort();
        assert_eq!(found, expected(), "{name}");
    }
}

#[test]
fn equal_layers_of_docker_save_are_links() {
    let folder = TempDir::new().unwrap();
    let layer = Layer::new().file("a", b"1").finish();
    let image = Image::new(json!({}))
        .layer(&layer, Compression::Plain)
        .layer(&Layer::new().file(".wh.a", b"").finish(), Compression::Plain)
        .layer(&layer, Compression::Plain);
    let path = folder.path().join("save.tar.gz");
    image.write_docker_save(&path, &[]);
    assert_eq!(
        listing(&convert(&path).unwrap())[1],
        "/a 644 0:0 1600000000.000000000 file x1 \"1\""
    );
}

#[test]
fn the_images_own_startup_file_is_kept() {
    let folder = TempDir::new().unwrap();
    let layer = Layer::new().file(".startup.toml", b"mine").finish();
    let mut image = Image::new(json!({"Cmd": ["sh"]})).layer(&layer, Compression::Gzip);
    let manifest = image.seal();
    image.write_layout(folder.path(), &[manifest]);
    assert!(listing(&convert(folder.path()).unwrap())[1].ends_with("file x1 \"mine\""));
}

#[test]
fn an_index_is_searched_by_platform_and_name() {
    let folder = TempDir::new().unwrap();
    let make = |name: &str, architecture: &str| {
        let layer = Layer::new().file(name, b"").finish();
        let mut image = Image::new(json!({})).layer(&layer, Compression::Gzip);
        image.config["architecture"] = json!(architecture);
        image
    };
    let mut all = make("amd64", "amd64");
    let mut amd64 = all.seal();
    amd64["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut other = make("arm64", "arm64");
    let mut arm64 = other.seal();
    arm64["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
    let mut attestation = amd64.clone();
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut second = make("second", "amd64");
    let mut named = second.seal();
    named["annotations"] = json!({"org.opencontainers.image.ref.name": "second"});
    all.blobs.extend(other.blobs);
    all.blobs.extend(second.blobs);
    let index = json!({"schemaVersion": 2, "manifests": [attestation, arm64, amd64]});
    let media_type = "application/vnd.oci.image.index.v1+json";
    let mut nested = all.descriptor(media_type, index.to_string().into_bytes());
    nested["annotations"] =
        json!({"org.opencontainers.image.ref.name": "registry.example/x/first:1"});
    all.write_layout(folder.path(), &[nested, named]);
    let find = |platform: &str, image: Option<&str>| {
        let options = flist::oci::Options {
            platform: platform.parse().unwrap(),
            image: image.map(str::to_owned),
            ..options()
        };
        let found = convert_image(folder.path().to_str().unwrap(), &options, &Quiet);
        found.map_or_else(|e| chain(&e), |converted| listing(&converted)[1].clone())
    };
    assert!(find("linux/amd64", Some("first:1")).starts_with("/amd64 "));
    assert!(find("linux/arm64", Some("first:1")).starts_with("/arm64 "));
    assert!(find("linux/arm64/v8", Some("1")).starts_with("/arm64 "));
    assert!(find("linux/amd64", Some("second")).starts_with("/second "));
    assert!(find("linux/amd64", None).contains("--image: registry.example/x/first:1, second"));
    assert!(find("linux/amd64", Some("third")).contains("no image named \"third\""));
    let none = find("linux/s390x", Some("first:1"));
    assert_eq!(none, "no image for linux/s390x; there are: linux/arm64, linux/amd64");
    let config = find("linux/arm64", Some("second"));
    assert_eq!(config, "no image for linux/arm64; there are: linux/amd64");
}

#[test]
fn the_command_writes_an_image_that_its_reader_takes() {
    let (mut image, folder) = (image(), TempDir::new().unwrap());
    let manifest = image.seal();
    image.write_layout(folder.path(), &[manifest]);
    let output = folder.path().join("out.fl");
    let store = format!("dir://{}", folder.path().join("store").display());
    std::fs::create_dir(folder.path().join("store")).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_flist"))
        .args(["from-oci", folder.path().to_str().unwrap(), "-o", output.to_str().unwrap()])
        .args(["--store", &store, "--no-sync"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let read = flist::format::Image::open(&output).unwrap();
    assert_eq!(read.tags["oci.user"], "7:8");
    assert_eq!(read.tree.walk().len(), expected().len());
    assert_eq!(read.tree.find(b"etc/linked"), read.tree.find(b"bin/alias"));
    assert!(read.tree.find(b".startup.toml").is_some());
}
