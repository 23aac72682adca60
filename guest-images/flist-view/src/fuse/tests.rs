//! One test per operation, on the bytes of `linux/fuse.h`; and requests that make no sense.

use std::sync::Arc;

use proptest::prelude::*;

use super::wire::opcode;
use super::*;
use crate::testing::{
    DEVICE, DIRECTORY, DIRECTORY_COUNT, EMPTY, FILE, FILE_SIZE, LINK, contents, index, source, view,
};
use crate::view::FlistView;

const UNIQUE: u64 = 0x0102_0304_0506_0708;
const YEAR_S: u64 = 365 * 24 * 3600;

fn server() -> Server<FlistView> {
    Server::new(view(), REPLY_BODY_SIZE_MAX)
}

fn request(opcode: u32, node: u64, arguments: &[u8]) -> Vec<u8> {
    let size = u32::try_from(40 + arguments.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend(size.to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(UNIQUE.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(arguments);
    bytes
}

fn read_arguments(offset: u64, size: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend([0; 20]);
    bytes
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Sends a request and returns the body, or the errno as a positive number.
fn call_with(server: &Server<FlistView>, request: &[u8], room: usize) -> Result<Vec<u8>, i32> {
    let mut reply = BufferReply::new(room);
    server.handle(request, &mut reply).unwrap();
    let bytes = reply.as_bytes().unwrap();
    assert_eq!(u32_at(bytes, 0) as usize, bytes.len());
    assert_eq!(u64_at(bytes, 8), UNIQUE);
    match u32_at(bytes, 4) {
        0 => Ok(bytes[16..].to_vec()),
        error => {
            assert_eq!(bytes.len(), 16, "an error has no body");
            Err(i32::try_from(error.wrapping_neg()).unwrap())
        }
    }
}

fn call(opcode: u32, node: u64, arguments: &[u8]) -> Result<Vec<u8>, i32> {
    call_with(&server(), &request(opcode, node, arguments), 1 << 20)
}

fn init(major: u32, minor: u32, flags: u32) -> Result<Vec<u8>, i32> {
    let mut arguments = Vec::new();
    for field in [major, minor, 131_072, flags] {
        arguments.extend(field.to_le_bytes());
    }
    call(opcode::INIT, 0, &arguments)
}

#[test]
fn init_agrees_on_the_older_version_and_on_common_flags() {
    let body = init(7, 45, u32::MAX).unwrap();
    assert_eq!(body.len(), 64);
    assert_eq!((u32_at(&body, 0), u32_at(&body, 4), u32_at(&body, 8)), (7, 38, 131_072));
    let flags = u32_at(&body, 12);
    for flag in [0, 4, 13, 17, 18, 22, 23, 24, 25] {
        assert_ne!(flags & (1 << flag), 0, "flag {flag}");
    }
    // No write-back, locks, splice, killpriv, ACLs, extensions.
    assert_eq!(flags.count_ones(), 9);
    assert_eq!(u32_at(&body, 20), 4096);
    assert_eq!(u32_at(&body, 28) & 0xffff, 256);
    let body = init(7, 31, 1).unwrap();
    assert_eq!((u32_at(&body, 4), u32_at(&body, 12)), (31, 1));
}

#[test]
fn clients_are_told_what_fits_a_reply() {
    for (size, pages) in [(0, 1), (10_000, 2), (128 << 10, 32), (1 << 20, 256), (9 << 20, 256)] {
        let server = Server::new(view(), size);
        let arguments = [7u32, 38, 0, u32::MAX].map(u32::to_le_bytes).concat();
        let body = call_with(&server, &request(opcode::INIT, 0, &arguments), 100).unwrap();
        assert_eq!(u32_at(&body, 28) & 0xffff, pages, "{size} bytes");
    }
}

#[test]
fn init_of_other_major_versions() {
    assert_eq!((u32_at(&init(8, 0, 0).unwrap(), 0), init(7, 22, 0)), (7, Err(71)));
    assert_eq!(init(6, 99, 0), Err(71));
}

#[test]
fn lookup_gives_node_validity_and_attributes() {
    let body = call(opcode::LOOKUP, 1, b"device\0").unwrap();
    assert_eq!(body.len(), 128);
    assert_eq!((u64_at(&body, 0), u64_at(&body, 16), u64_at(&body, 24)), (DEVICE, YEAR_S, YEAR_S));
    let attributes = &body[40..];
    assert_eq!(u64_at(attributes, 0), DEVICE);
    assert_eq!(u64_at(attributes, 32), u64::MAX, "mtime of -1 s");
    assert_eq!((u64_at(attributes, 40), u32_at(attributes, 52)), (2, 7));
    assert_eq!((u32_at(attributes, 56), u32_at(attributes, 60)), (8, 0o060_600));
    assert_eq!((u32_at(attributes, 68), u32_at(attributes, 72)), (1000, 100));
    assert_eq!(u32_at(attributes, 76), (300 & 0xff) | (259 << 8) | ((300 & !0xff) << 12));
}

#[test]
fn lookup_of_a_name_that_is_not_there_is_remembered_for_a_year() {
    let body = call(opcode::LOOKUP, 1, b"missing\0").unwrap();
    assert_eq!((body.len(), u64_at(&body, 0), u64_at(&body, 16)), (128, 0, YEAR_S));
    assert_eq!(call(opcode::LOOKUP, FILE, b"x\0"), Err(20));
    assert_eq!(call(opcode::LOOKUP, 999, b"x\0"), Err(2));
}

#[test]
fn names_with_slashes_nuls_or_no_end_are_refused() {
    for name in [b"".as_slice(), b"\0", b"file", b"a/b\0", b"/\0", b"fi\0le\0", b"file\0\0"] {
        assert_eq!(call(opcode::LOOKUP, 1, name), Err(22), "{name:?}");
    }
    let mut long = vec![b'a'; 256];
    long.push(0);
    assert_eq!(call(opcode::LOOKUP, 1, &long), Err(36));
}

#[test]
fn getattr_gives_attributes() {
    let body = call(opcode::GETATTR, FILE, &[0; 16]).unwrap();
    assert_eq!((body.len(), u64_at(&body, 0)), (104, YEAR_S));
    assert_eq!((u64_at(&body, 24), u64_at(&body, 32)), (FILE_SIZE, FILE_SIZE.div_ceil(512)));
    assert_eq!(u32_at(&body, 16 + 64), 301);
    assert_eq!(call(opcode::GETATTR, 0, &[0; 16]), Err(2));
}

#[test]
fn readlink_gives_the_target() {
    assert_eq!(call(opcode::READLINK, LINK, b"").unwrap(), b"directory/000");
    assert_eq!(call(opcode::READLINK, FILE, b""), Err(22));
}

#[test]
fn read_crosses_blocks_and_ends_with_the_file() {
    let contents = contents();
    let body = call(opcode::READ, FILE, &read_arguments(524_280, 100)).unwrap();
    assert_eq!(body, &contents[524_280..]);
    assert!(call(opcode::READ, FILE, &read_arguments(0, u32::MAX)).unwrap() == contents);
    assert_eq!(call(opcode::READ, EMPTY, &read_arguments(0, 10)).unwrap(), b"");
    assert_eq!(call(opcode::READ, FILE, &read_arguments(u64::MAX, u32::MAX)).unwrap(), b"");
    assert_eq!(call(opcode::READ, DIRECTORY, &read_arguments(0, 10)), Err(21));
    assert_eq!(call(opcode::READ, FILE, &[0; 19]), Err(22));
}

#[test]
fn read_gives_no_more_than_the_reply_holds() {
    let server = server();
    let request = request(opcode::READ, FILE, &read_arguments(3, u32::MAX));
    assert_eq!(call_with(&server, &request, 100).unwrap(), contents()[3..103]);
}

/// Parses `fuse_dirent`s, after 128 bytes of `fuse_entry_out` each if `is_plus`.
fn entries(mut body: &[u8], is_plus: bool) -> Vec<(String, u64, u64, u32, u64)> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        let node = if is_plus { u64_at(body, 0) } else { 0 };
        let dirent = &body[if is_plus { 128 } else { 0 }..];
        let name_size = u32_at(dirent, 16) as usize;
        let name = String::from_utf8(dirent[24..24 + name_size].to_vec()).unwrap();
        entries.push((name, u64_at(dirent, 0), u64_at(dirent, 8), u32_at(dirent, 20), node));
        body = &dirent[(24 + name_size).next_multiple_of(8)..];
    }
    entries
}

#[test]
fn readdir_lists_numbers_and_types() {
    let body = call(opcode::READDIR, 1, &read_arguments(0, 4096)).unwrap();
    let expected = [
        (".", 1, 1, 4, 0),
        ("..", 1, 2, 4, 0),
        ("device", DEVICE, 3, 6, 0),
        ("directory", DIRECTORY, 4, 4, 0),
        ("empty", EMPTY, 5, 8, 0),
        ("file", FILE, 6, 8, 0),
        ("link", LINK, 7, 10, 0),
    ]
    .map(|(name, ino, offset, kind, node)| (name.to_owned(), ino, offset, kind, node));
    assert_eq!(entries(&body, false), expected);
    assert_eq!(call(opcode::READDIR, 1, &read_arguments(7, 4096)).unwrap(), b"");
    assert_eq!(call(opcode::READDIR, FILE, &read_arguments(0, 4096)), Err(20));
}

#[test]
fn readdirplus_gives_nodes_to_all_but_dot_and_dot_dot() {
    let body = call(opcode::READDIRPLUS, 1, &read_arguments(0, 4096)).unwrap();
    let nodes: Vec<u64> = entries(&body, true).iter().map(|entry| entry.4).collect();
    assert_eq!(nodes, [0, 0, DEVICE, DIRECTORY, EMPTY, FILE, LINK]);
}

#[test]
fn listings_fit_the_size_asked_for_and_resume() {
    for (opcode, is_plus) in [(opcode::READDIR, false), (opcode::READDIRPLUS, true)] {
        let mut all = Vec::new();
        loop {
            let offset = all.last().map_or(0, |entry: &(_, _, u64, _, _)| entry.2);
            let body = call(opcode, DIRECTORY, &read_arguments(offset, 1000)).unwrap();
            assert!(body.len() <= 1000);
            let batch = entries(&body, is_plus);
            if batch.is_empty() {
                break;
            }
            all.extend(batch);
        }
        assert_eq!(all.len(), DIRECTORY_COUNT + 2);
        assert!(all[2..].iter().map(|e| &e.0).is_sorted());
    }
}

#[test]
fn statfs_gives_totals() {
    let body = call(opcode::STATFS, 1, b"").unwrap();
    assert_eq!((body.len(), u64_at(&body, 0)), (80, FILE_SIZE.div_ceil(4096)));
    assert_eq!((u64_at(&body, 8), u64_at(&body, 16)), (0, 0));
    assert_eq!((u64_at(&body, 24), u64_at(&body, 32)), (6, 0));
    assert_eq!((u32_at(&body, 40), u32_at(&body, 44), u32_at(&body, 48)), (4096, 255, 4096));
}

#[test]
fn getxattr_and_listxattr_answer_in_two_steps() {
    let get = |size: u32, name: &[u8]| {
        let arguments = [size.to_le_bytes().as_slice(), &[0; 4], name].concat();
        call(opcode::GETXATTR, FILE, &arguments)
    };
    assert_eq!(get(0, b"user.a\0").unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(get(5, b"user.a\0").unwrap(), b"value");
    assert_eq!(get(4, b"user.a\0"), Err(34));
    assert_eq!(get(5, b"user.b\0"), Err(61));
    let list = |size: u32| call(opcode::LISTXATTR, FILE, &[size.to_le_bytes(), [0; 4]].concat());
    assert_eq!(list(0).unwrap(), [18, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(list(100).unwrap(), b"user.a\0user.empty\0");
    assert_eq!(list(17), Err(34));
}

#[test]
fn an_image_without_extended_attributes_says_never_ask_again() {
    let server = Server::new(FlistView::new(Arc::new(index(false)), source()), 1 << 20);
    let get = request(opcode::GETXATTR, FILE, b"\x05\0\0\0\0\0\0\0user.a\0");
    assert_eq!(call_with(&server, &get, 100), Err(38));
    assert_eq!(call_with(&server, &request(opcode::LISTXATTR, FILE, &[0; 8]), 100), Err(38));
}

#[test]
fn opening_is_not_needed_and_not_for_writing() {
    const O_WRONLY: u32 = 1;
    const OPENDIR: u32 = 27;
    assert_eq!(call(opcode::OPEN, FILE, &[0; 8]), Err(38));
    assert_eq!(call(OPENDIR, 1, &[0; 8]), Err(38));
    let arguments = [O_WRONLY.to_le_bytes(), [0; 4]].concat();
    assert_eq!(call(opcode::OPEN, FILE, &arguments), Err(30));
    assert_eq!(call(opcode::RELEASE, FILE, &[0; 24]).unwrap(), b"");
    assert_eq!(call(opcode::RELEASEDIR, 1, &[0; 24]).unwrap(), b"");
}

#[test]
fn writing_is_refused() {
    for opcode in [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51] {
        assert_eq!(call(opcode, 1, &[0; 64]), Err(30), "opcode {opcode}");
    }
}

#[test]
fn what_the_server_does_not_know_the_kernel_does_without() {
    for opcode in [0, 20, 25, 30, 34, 36, 37, 39, 40, 41, 46, 48, 52, 4096, u32::MAX] {
        assert_eq!(call(opcode, 1, &[0; 64]), Err(38), "opcode {opcode}");
    }
}

#[test]
fn forgetting_wants_no_reply_and_destroying_does() {
    let server = server();
    let mut reply = BufferReply::new(100);
    for opcode in [opcode::FORGET, opcode::BATCH_FORGET] {
        let forget = request(opcode, FILE, &[0; 16]);
        assert_eq!(server.handle(&forget, &mut reply).unwrap(), Outcome::Silent);
    }
    assert_eq!(server.handle(&[0; 39], &mut reply).unwrap(), Outcome::Malformed);
    assert!(reply.as_bytes().is_none());
    let destroy = request(opcode::DESTROY, 0, &[]);
    assert_eq!(server.handle(&destroy, &mut reply).unwrap(), Outcome::Destroyed);
    assert!(reply.as_bytes().is_some());
}

#[test]
fn a_long_request_may_be_cut() {
    const WRITE_SIZE: usize = 1 << 20;
    let server = server();
    let mut write = request(opcode::WRITE, FILE, &vec![0; WRITE_SIZE]);
    write.truncate(REQUEST_SIZE_MAX);
    assert_eq!(call_with(&server, &write, 1000), Err(30));
    let mut set = request(opcode::SETXATTR, FILE, &vec![0; WRITE_SIZE]);
    set.truncate(REQUEST_SIZE_MAX - 1);
    assert_eq!(call_with(&server, &set, 1000), Err(22));
    let mut lookup = request(opcode::LOOKUP, 1, &vec![b'a'; WRITE_SIZE]);
    lookup.truncate(REQUEST_SIZE_MAX);
    assert_eq!(call_with(&server, &lookup, 1000), Err(22));
}

#[test]
fn a_request_whose_header_lies_about_its_size_is_refused() {
    let server = server();
    for size in [0u32, 39, 57, u32::MAX] {
        let mut lying = request(opcode::GETATTR, FILE, &[0; 16]);
        lying[..4].copy_from_slice(&size.to_le_bytes());
        assert_eq!(call_with(&server, &lying, 1000), Err(22), "{size}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing that a client sends makes the server panic, or send more than there is room for.
    #[test]
    fn random_requests_get_bounded_replies(
        opcode in prop_oneof![0u32..60, any::<u32>()],
        node in prop_oneof![0u64..10, any::<u64>()],
        arguments in prop::collection::vec(any::<u8>(), 0..100),
        size in prop_oneof![Just(None), any::<u32>().prop_map(Some)],
        room in 0usize..5000,
    ) {
        let server = server();
        let mut bytes = request(opcode, node, &arguments);
        if let Some(size) = size {
            bytes[..4].copy_from_slice(&size.to_le_bytes());
        }
        let mut reply = BufferReply::new(room);
        if matches!(server.handle(&bytes, &mut reply).unwrap(), Outcome::Replied | Outcome::Destroyed) {
            let sent = reply.as_bytes().unwrap();
            prop_assert!(sent.len() <= room + REPLY_HEADER_SIZE);
            prop_assert_eq!(u32_at(sent, 0) as usize, sent.len());
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut reply = BufferReply::new(1000);
        server().handle(&bytes, &mut reply).unwrap();
    }
}
