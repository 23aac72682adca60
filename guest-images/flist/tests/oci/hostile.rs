//! Images that lie, climb, loop or explode end in an error that names the blob, the file, the rule.

use flist::oci::layer::TreeLimits;
use flist::oci::spool::SpoolLimits;
use flist::oci::{Limits, Options, convert as convert_image};
use flist::progress::{Cancelled, Progress, Quiet};
use serde_json::json;
use tar::EntryType;
use tempfile::TempDir;

use super::image::{Compression, Image, Layer, sha256};
use super::{chain, convert, options};

/// Writes the image, after `change`, as a layout; returns the error of its conversion.
fn error_of(mut image: Image, change: impl FnOnce(&mut Image)) -> String {
    let folder = TempDir::new().unwrap();
    let manifest = image.seal();
    change(&mut image);
    image.write_layout(folder.path(), &[manifest]);
    chain(&convert(folder.path()).unwrap_err())
}

fn layer_error(layer: Layer) -> String {
    error_of(Image::new(json!({})).layer(&layer.finish(), Compression::Gzip), |_| {})
}

fn simple() -> Image {
    Image::new(json!({})).layer(&Layer::new().file("a", b"a").finish(), Compression::Gzip)
}

#[test]
fn a_changed_blob_is_named_by_its_digest() {
    for position in [0, 12, 40] {
        let image = simple();
        let digest = image.layers[0].clone();
        let found = error_of(image, |image| {
            image.blobs.get_mut(&digest).unwrap()[position] ^= 1;
        });
        assert!(found.starts_with(&format!("{digest}: digest is sha256:")), "{found}");
    }
}

#[test]
fn a_changed_manifest_or_configuration_is_refused() {
    for what in ["schemaVersion", "rootfs"] {
        let found = error_of(simple(), |image| {
            let blobs = image.blobs.values_mut();
            let blob = blobs.into_iter().find(|blob| String::from_utf8_lossy(blob).contains(what));
            blob.unwrap().push(b' ');
        });
        assert!(found.contains("bytes, expected"), "{found}");
    }
}

#[test]
fn a_missing_blob_is_named() {
    let image = simple();
    let digest = image.layers[0].clone();
    let found = error_of(image, |image| {
        image.blobs.remove(&digest);
    });
    assert_eq!(found, format!("{digest}: missing from the image"));
}

#[test]
fn a_wrong_diff_id_is_refused() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let layer = Layer::new().file("a", b"a").finish();
        let mut image = Image::new(json!({})).layer(&layer, compression);
        let digest = image.layers[0].clone();
        image.config["rootfs"]["diff_ids"] = json!([sha256(b"other")]);
        let found = error_of(image, |_| {});
        assert!(found.starts_with(&format!("{digest}: uncompressed digest (diff_id)")), "{found}");
    }
}

#[test]
fn layers_and_diff_ids_must_match_in_number() {
    let mut image = simple();
    image.config["rootfs"]["diff_ids"] = json!([]);
    assert!(error_of(image, |_| {}).contains("0 diff_ids for 1 layers"));
}

#[test]
fn names_that_climb_out_are_refused() {
    let found = layer_error(Layer::new().file("../x", b""));
    assert!(found.starts_with("layer sha256:"), "{found}");
    assert!(found.ends_with("\"../x\": \"..\" in a name"), "{found}");
    assert!(layer_error(Layer::new().file("/etc/x", b"")).contains("\"/etc/x\": an absolute name"));
    let found = layer_error(Layer::new().hard_link("x", "/etc/shadow"));
    assert!(
        found.contains("\"x\": its hard link's target \"/etc/shadow\": an absolute"),
        "{found}"
    );
    let found = layer_error(Layer::new().hard_link("x", "../../etc/shadow"));
    assert!(found.contains("\"..\" in a name"), "{found}");
}

#[test]
fn links_that_climb_or_loop_stay_inside() {
    let found = layer_error(Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", b""));
    assert!(
        found.ends_with("\"a/x\": more than 40 symbolic links on its way, or a cycle"),
        "{found}"
    );
    let folder = TempDir::new().unwrap();
    let layer = Layer::new().symlink("out", "../../../../tmp").file("out/inside", b"").finish();
    let mut image = Image::new(json!({})).layer(&layer, Compression::Gzip);
    let manifest = image.seal();
    image.write_layout(folder.path(), &[manifest]);
    assert!(convert(folder.path()).unwrap().tree.find(b"tmp/inside").is_some());
}

#[test]
fn layers_that_are_not_compressed_count_too() {
    let folder = TempDir::new().unwrap();
    let half = |name: &str| Layer::new().file(name, &vec![7; 600 << 10]).finish();
    let mut image = Image::new(json!({}))
        .layer(&half("a"), Compression::Plain)
        .layer(&half("b"), Compression::Plain);
    let second = image.layers[1].clone();
    let manifest = image.seal();
    image.write_layout(folder.path(), &[manifest]);
    let spool = SpoolLimits { total_size_max: 1 << 20, ..Default::default() };
    let options = Options { limits: Limits { spool, ..Limits::default() }, ..options() };
    let error = convert_image(folder.path().to_str().unwrap(), &options, &Quiet).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("{second}: ")) && text.contains("are left of"), "{text}");
}

#[test]
fn bombs_are_stopped_by_ratio_and_by_size() {
    let folder = TempDir::new().unwrap();
    let zeros = Layer::new().file("zeros", &vec![0; 4 << 20]).finish();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut image = Image::new(json!({})).layer(&zeros, compression);
        let manifest = image.seal();
        image.write_layout(folder.path(), &[manifest]);
        let ratio = SpoolLimits { ratio_max: 20, ratio_free_size: 1 << 20, ..Default::default() };
        let total = SpoolLimits { total_size_max: 2 << 20, ..Default::default() };
        for spool in [ratio, total] {
            let limits = Limits { spool, ..Limits::default() };
            let options = Options { limits, ..options() };
            let found = convert_image(folder.path().to_str().unwrap(), &options, &Quiet);
            let found = chain(&found.unwrap_err());
            assert!(found.contains("bytes decompress to more than"), "{found}");
        }
        let tree = TreeLimits { contents_size_max: 1 << 20, ..TreeLimits::default() };
        let options = Options { limits: Limits { tree, ..Limits::default() }, ..options() };
        let found = convert_image(folder.path().to_str().unwrap(), &options, &Quiet);
        assert!(chain(&found.unwrap_err()).contains("more than 1048576 bytes of contents"));
    }
}

#[test]
fn sizes_beyond_all_measure_are_refused() {
    let size = (1u64 << 60).to_string();
    let records: [(&str, &[u8]); 2] =
        [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,1")];
    let found = layer_error(Layer::new().pax(&records).file("huge", b"x"));
    assert!(found.contains("bytes of contents"), "{found}");
    let found = layer_error(Layer::new().pax(&[("size", size.as_bytes())]).file("huge", b"x"));
    assert!(found.contains("ends in the middle"), "{found}");
}

#[test]
fn what_is_no_tar_or_no_image_says_so() {
    let image = Image::new(json!({})).layer(&[b'x'; 600], Compression::Gzip);
    assert!(error_of(image, |_| {}).contains("not a tar header: its checksum does not match"));
    let unknown = Layer::new().member(EntryType::new(b'V'), "label", 0, b"", |_| {});
    assert!(layer_error(unknown).contains("\"label\" (header at byte 0): unknown member type 'V'"));
    let folder = TempDir::new().unwrap();
    assert!(chain(&convert(folder.path()).unwrap_err()).contains("no file \"oci-layout\""));
    let file = folder.path().join("x.tar");
    std::fs::write(&file, Layer::new().file("a", b"").finish()).unwrap();
    let found = chain(&convert(&file).unwrap_err());
    assert!(found.contains("neither \"oci-layout\" nor \"manifest.json\""), "{found}");
    std::fs::write(&file, [1; 2000]).unwrap();
    let found = chain(&convert(&file).unwrap_err());
    assert!(found.contains("neither a directory nor an image's tar"), "{found}");
    let found = chain(&convert(&folder.path().join("none")).unwrap_err());
    assert!(found.contains("none"), "{found}");
}

#[test]
fn json_that_is_too_large_or_of_another_kind_is_refused() {
    let mut image = simple();
    image.config["padding"] = json!("x".repeat(5 << 20));
    assert!(error_of(image, |_| {}).contains("bytes of JSON, at most 4194304 are allowed"));
    let mut image = simple();
    image.config = json!({"helm": true});
    assert!(
        error_of(image, |_| {}).contains("not the JSON expected there: missing field `rootfs`")
    );
}

#[test]
fn indexes_that_nest_too_deep_are_refused() {
    let (mut image, folder) = (simple(), TempDir::new().unwrap());
    let mut descriptor = image.seal();
    for _ in 0..6 {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string();
        let media_type = "application/vnd.oci.image.index.v1+json";
        descriptor = image.descriptor(media_type, index.into_bytes());
    }
    image.write_layout(folder.path(), &[descriptor]);
    assert!(chain(&convert(folder.path()).unwrap_err()).contains("more than 4 indexes"));
}

/// Wants to stop from the beginning.
struct Impatient;

impl Progress for Impatient {
    fn begin(&self, _what: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _text: &str) {}
    fn check(&self) -> Result<(), Cancelled> {
        Err(Cancelled)
    }
}

#[test]
fn an_impatient_user_is_heard() {
    let (mut image, folder) = (simple(), TempDir::new().unwrap());
    let manifest = image.seal();
    image.write_layout(folder.path(), &[manifest]);
    let found = convert_image(folder.path().to_str().unwrap(), &options(), &Impatient);
    assert_eq!(chain(&found.unwrap_err()), "interrupted");
}
