//! A hub on a loopback port, and a folder that stands in for one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::server::{Request, Response, Server};

const TOKEN: &str = "token.of-me";

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/vectors/flist/sample.fl")
}

fn md5(path: &Path) -> String {
    use md5::Digest;
    let digest = md5::Md5::digest(fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn push(arguments: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flist"));
    command.arg("push").args(arguments).env_remove("FLIST_HUB_TOKEN");
    command.envs(token.map(|token| ("FLIST_HUB_TOKEN", token)));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Takes uploads for the owner of the token, and shows their MD5.
fn hub(damages: bool) -> (Server, Arc<Mutex<Vec<u8>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let server = Server::new(move |request: &Request| {
        use md5::Digest;
        if request.target == "/me/web.fl.md5" {
            let digest = md5::Md5::digest(&*keep.lock().unwrap());
            let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            return Response::new(200, format!("{digits}\n"));
        }
        assert_eq!(request.target, "/api/flist/me/upload-flist");
        if request.header("authorization") != Some(&format!("bearer {TOKEN}")) {
            return Response::new(401, r#"{"status": "error", "message": "Access denied"}"#);
        }
        assert_eq!(request.header("cookie"), Some("active-user=me"));
        let kind = request.header("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
        let body = &request.body;
        let start = body.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&body[..start]).into_owned();
        assert!(head.starts_with(&format!("--{boundary}\r\n")), "{head}");
        assert!(head.contains("name=\"file\"; filename=\"web.fl\""), "{head}");
        let tail = format!("\r\n--{boundary}--\r\n");
        let mut image = body[start..].strip_suffix(tail.as_bytes()).unwrap().to_vec();
        if damages {
            image[0] ^= 1;
        }
        *keep.lock().unwrap() = image;
        Response::new(200, r#"{"status": "success", "payload": {}}"#)
    });
    (server, kept)
}

#[test]
fn a_hub_takes_what_its_token_allows() {
    let (server, kept) = hub(false);
    let (image, url) = (sample(), format!("http://{}", server.address()));
    let arguments = [image.to_str().unwrap(), &url, "--user", "me", "--name", "web"];
    let pushed = push(&arguments, Some(TOKEN));
    assert!(pushed.status.success(), "{}", text(&pushed.stderr));
    assert!(text(&pushed.stdout).starts_with("web.fl: "));
    assert_eq!(*kept.lock().unwrap(), fs::read(&image).unwrap());
    let refused = push(&arguments, Some("a-guess"));
    assert_eq!(refused.status.code(), Some(4));
    let message = text(&refused.stderr);
    assert!(message.contains("401") && message.contains("Access denied"), "{message}");
    assert!(!message.contains("a-guess"), "{message}");
    assert!(text(&push(&arguments, None).stderr).contains("a hub wants a token"));
}

#[test]
fn a_token_can_come_from_a_file() {
    let (server, kept) = hub(false);
    let (folder, url) = (TempDir::new().unwrap(), format!("http://{}", server.address()));
    let token = folder.path().join("token");
    fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let image = sample();
    let token = token.to_str().unwrap();
    let arguments =
        [image.to_str().unwrap(), &url, "--user", "me", "--name", "web.fl", "--token-file", token];
    assert!(push(&arguments, None).status.success());
    assert!(!kept.lock().unwrap().is_empty());
}

#[test]
fn a_hub_that_keeps_something_else_is_found_out() {
    let (server, _kept) = hub(true);
    let (image, url) = (sample(), format!("http://{}", server.address()));
    let arguments = [image.to_str().unwrap(), &url, "--user", "me", "--name", "web"];
    let pushed = push(&arguments, Some(TOKEN));
    assert_eq!(pushed.status.code(), Some(1));
    assert!(text(&pushed.stderr).contains("was sent"), "{}", text(&pushed.stderr));
}

#[test]
fn a_hub_out_of_reach_may_be_tried_again() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (image, url) = (sample(), format!("http://{port}"));
    let pushed = push(&[image.to_str().unwrap(), &url], Some(TOKEN));
    assert_eq!(pushed.status.code(), Some(75), "{}", text(&pushed.stderr));
}

#[test]
fn a_folder_becomes_a_hub() {
    let folder = TempDir::new().unwrap();
    let (image, target) = (sample(), folder.path().to_str().unwrap());
    // The second time replaces the first.
    for _ in 0..2 {
        let run = push(&[image.to_str().unwrap(), target, "--user", "me.3bot"], None);
        assert!(run.status.success(), "{}", text(&run.stderr));
    }
    let user = folder.path().join("me.3bot");
    assert_eq!(fs::read(user.join("sample.fl")).unwrap(), fs::read(&image).unwrap());
    let digits = md5(&image);
    assert_eq!(fs::read_to_string(user.join("sample.fl.md5")).unwrap(), format!("{digits}\n"));
    for path in ["me.3bot/sample.fl.json", "api/flist/me.3bot/sample.fl/light"] {
        let json = fs::read(folder.path().join(path)).unwrap();
        let light: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(light["md5"], digits);
        assert_eq!((&light["name"], &light["type"]), (&"sample.fl".into(), &"regular".into()));
    }
    assert_eq!(fs::read_dir(&user).unwrap().count(), 3, "nothing else is left behind");
}

#[test]
fn what_is_no_image_is_not_published() {
    let folder = TempDir::new().unwrap();
    let bad = folder.path().join("bad.fl");
    fs::write(&bad, [b"SQLite format 3\0".as_slice(), &[0; 500]].concat()).unwrap();
    let target = folder.path().join("hub");
    let run = push(&[bad.to_str().unwrap(), target.to_str().unwrap(), "--user", "me"], None);
    assert_eq!(run.status.code(), Some(1), "{}", text(&run.stderr));
    assert!(!target.exists());
}
