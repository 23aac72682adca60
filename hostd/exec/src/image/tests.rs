//! Images by a program that answers as `flist` does, or as a broken one.

use std::fs;

use super::*;

/// A node's images with a program that runs `script`, in which `$into` is the folder.
fn images(folder: &Path, script: &str) -> Images {
    let flist = folder.join("flist");
    let text = format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n");
    // By another process: what we have open for writing while another test starts a program can't be run.
    let script = folder.join("script");
    fs::write(&script, text).unwrap();
    let install = std::process::Command::new("install").arg(&script).arg(&flist).status();
    assert!(install.unwrap().success());
    let store = folder.join("images");
    fs::create_dir_all(store.join("urls")).unwrap();
    let config = ImageConfig {
        folder: store,
        cache: folder.join("cache"),
        socket: folder.join("cached.sock"),
        logs: folder.join("logs"),
        flist,
        size_max: 1 << 20,
        cache_size_max: 1 << 20,
        routes: vec!["10.0.0.0/8".into()],
        times: ImageTimes::default(),
    };
    Images { config, locks: Locks::default(), examining: Mutex::new(()) }
}

const HASH: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const MD5: &str = "22222222222222222222222222222222";

/// Fetches once, is asked again with the MD5, and counts.
fn script(boot: &str) -> String {
    format!(
        r#"
case "$1" in
fetch)
    echo "$@" >> "$(dirname "$0")/asked"
    case "$*" in
    *"--known {MD5}"*) echo '{{"result":"unchanged"}}'; exit;;
    esac
    echo image > "$3/{HASH}"
    echo '{{"result":"fetched","hash":"{HASH}","md5":"{MD5}","size":6}}';;
boot)
    echo "$@" >> "$(dirname "$0")/asked"
    {boot};;
esac"#
    )
}

#[test]
fn an_image_is_fetched_once_and_looked_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let boot = r#"echo '{"kind":"kernel","kernel":"../../x","initramfs":"y"}'"#;
    let images = images(folder.path(), &script(boot));
    let first = images.fetch("https://hub/u/x.fl").unwrap();
    assert_eq!(first.hash, HASH);
    assert_eq!(fs::read(&first.path).unwrap(), b"image\n");
    let ImageBoot::Kernel { kernel, initramfs } = &first.boot else { panic!("{first:?}") };
    let boot = folder.path().join(format!("images/{HASH}.boot"));
    assert_eq!((kernel, initramfs), (&boot.join("kernel"), &Some(boot.join("initramfs"))));
    assert_eq!(images.fetch("https://hub/u/x.fl").unwrap(), first);
    assert_eq!(images.pinned(HASH).unwrap(), first);
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    let lines: Vec<_> = asked.lines().collect();
    assert_eq!(lines.len(), 3, "{asked}");
    assert!(lines[0].contains("--allow-route 10.0.0.0/8 -- https://hub/u/x.fl"), "{asked}");
    assert!(lines[1].starts_with("boot ") && lines[2].contains("--known"), "{asked}");
}

#[test]
fn a_whole_disk_is_written_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"[ "$1" = write-disk ] || exit 9; echo "$@" > "$(dirname "$0")/asked"
        [ -e "$5" ] || { echo 'flist: image size is bigger than disk' >&2; exit 1; }"#;
    let images = images(folder.path(), script);
    let boot = ImageBoot::Disk { size: 1 };
    let image = Image { hash: HASH.into(), path: "/images/x".into(), boot };
    let disk = folder.path().join("disk");
    let error = images.write_disk(&image, &disk).unwrap_err().to_string();
    assert_eq!(error, "image: image size is bigger than disk");
    fs::write(&disk, "").unwrap();
    images.write_disk(&image, &disk).unwrap();
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    let expected = format!("--to {} --time-max 3600 /images/x\n", disk.display());
    assert!(asked.starts_with("write-disk --cache ") && asked.ends_with(&expected), "{asked}");
}

#[test]
fn what_goes_wrong_reaches_the_user_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let refused = "echo 'flist: https://hub/x: the hub has no such image' >&2; exit 3";
    let error = images(folder.path(), refused).fetch("https://hub/x").unwrap_err().to_string();
    assert_eq!(error, "image: https://hub/x: the hub has no such image");
    let unkept = format!(r#"echo '{{"result":"fetched","hash":"{HASH}","md5":"{MD5}"}}'"#);
    for nonsense in
        [&*unkept, "true", "echo '{\"result\":\"unchanged\"}'", "echo x", &script("echo '{}'")]
    {
        let error = images(folder.path(), nonsense).fetch("https://hub/x").unwrap_err().to_string();
        assert!(error.contains("makes no sense"), "{nonsense}: {error}");
    }
    // Where the file is on the node is nobody's business.
    let damaged = "for last; do :; done; echo \"flist: $last: cache: $last: damaged\" >&2; exit 1";
    let another = tempfile::tempdir().unwrap();
    let cut = images(another.path(), &script(damaged));
    let error = cut.fetch("https://hub/x").unwrap_err().to_string();
    assert_eq!(error, "image: https://hub/x: cache: damaged");
    let traversal = "echo '{\"result\":\"fetched\",\"hash\":\"../../etc\",\"md5\":\"\"}'";
    let images = images(folder.path(), traversal);
    assert!(images.fetch("https://hub/x").unwrap_err().to_string().contains("makes no sense"));
    assert!(matches!(images.pinned("../x"), Err(ImageError::Gone)));
    assert!(matches!(images.pinned(&"0".repeat(64)), Err(ImageError::Gone)));
}

#[test]
fn who_only_asks_gets_less_and_one_answer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), &script("exit 1"));
    images.examine("https://hub/u/x.fl").unwrap();
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    assert!(asked.contains("--size-max 1048576 --time-max 30"), "{asked}");
    assert!(!asked.contains("boot"), "{asked}");
    let _other = images.examining.lock().unwrap();
    assert!(matches!(images.examine("https://hub/u/x.fl"), Err(ImageError::Busy)));
}

#[test]
fn who_does_not_answer_is_given_up_in_time_and_holds_up_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    // One address hangs, and leaves a process behind that holds what it would have said it on; one trickles;
    // the third is as it should be.
    let hanging = r#"
        case "$*" in
        *hang*) sleep 1000 & echo $! > "$(dirname "$0")/left"; sleep 1000;;
        *trickle*) while :; do echo x; sleep 0.01; done;;
        esac"#;
    let mut images =
        images(folder.path(), &format!("{hanging}\n{}", script(r#"echo '{"kind":"container"}'"#)));
    let (second, grace) = (Duration::from_secs(1), Duration::from_millis(300));
    images.config.times = ImageTimes { fetch: second, boot: second, grace };
    let (begin, images) = (std::time::Instant::now(), &images);
    std::thread::scope(|scope| {
        let slow: Vec<_> = ["hang", "trickle", "hang"]
            .into_iter()
            .map(|name| scope.spawn(move || images.fetch(&format!("https://hub/{name}"))))
            .collect();
        // The image of somebody else comes meanwhile.
        let good = images.fetch("https://hub/u/x.fl").unwrap();
        assert_eq!(good.boot, ImageBoot::Container);
        assert!(slow.iter().all(|slow| !slow.is_finished()), "{:?}", begin.elapsed());
        for slow in slow {
            let error = slow.join().unwrap().unwrap_err().to_string();
            assert_eq!(error, "image: not done within 1 s");
        }
    });
    // Twice the same address is asked one after the other.
    assert!(begin.elapsed() >= (second + grace) * 2);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let left: i32 = fs::read_to_string(folder.path().join("left")).unwrap().trim().parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    // It ends with its parent; whoever takes in orphans may not have come to it yet.
    let stat = || fs::read_to_string(format!("/proc/{}/stat", left.as_raw_nonzero())).ok();
    let is_gone = || stat().is_none_or(|stat| stat.contains(") Z "));
    while !is_gone() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", stat());
        std::thread::sleep(Duration::from_millis(10));
    }
}
