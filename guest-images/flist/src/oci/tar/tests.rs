//! Archives made by the `tar` crate, and by hand where it can't.

use super::*;

fn archive(write: impl FnOnce(&mut ::tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    write(&mut builder);
    builder.into_inner().unwrap()
}

fn header(kind: ::tar::EntryType, size: u64) -> ::tar::Header {
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn read(bytes: &[u8]) -> Result<Vec<Member>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut members = Vec::new();
    while let Some(member) = archive.next()? {
        members.push(member);
    }
    Ok(members)
}

fn contents(bytes: &[u8], data: &FileData) -> Vec<u8> {
    let mut contents = vec![0; usize::try_from(data.size).unwrap()];
    for extent in &data.extents {
        let [start, offset, size] =
            [extent.start, extent.offset, extent.size].map(|n| usize::try_from(n).unwrap());
        contents[start..start + size].copy_from_slice(&bytes[offset..offset + size]);
    }
    contents
}

fn rule(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn names_owners_and_data_are_where_they_should_be() {
    let long = format!("{}/x", "d".repeat(150));
    let bytes = archive(|builder| {
        let mut first = header(::tar::EntryType::Regular, 5);
        first.set_uid(0x1_0000_0000 - 1);
        first.set_mtime(1_700_000_000);
        builder.append_data(&mut first, &long, &b"hello"[..]).unwrap();
        let mut link = header(::tar::EntryType::Symlink, 0);
        builder.append_link(&mut link, "l", "t".repeat(120)).unwrap();
        let mut device = header(::tar::EntryType::Char, 0);
        device.set_device_major(5).unwrap();
        device.set_device_minor(1).unwrap();
        builder.append_data(&mut device, "console", &b""[..]).unwrap();
    });
    let members = read(&bytes).unwrap();
    assert_eq!(members[0].name, long.as_bytes());
    assert_eq!((members[0].uid, members[0].mtime.seconds), (u32::MAX, 1_700_000_000));
    let Kind::File(data) = &members[0].kind else { panic!("{:?}", members[0]) };
    assert_eq!(contents(&bytes, data), b"hello");
    assert_eq!(members[1].kind, Kind::Symlink(vec![b't'; 120]));
    assert_eq!(members[2].kind, Kind::CharacterDevice(DeviceNumber { major: 5, minor: 1 }));
}

#[test]
fn pax_records_override_the_header_and_carry_binary_attributes() {
    let capability = b"\x01\0\0\x02\n=\n\0\xff";
    let bytes = archive(|builder| {
        let records: [(&str, &[u8]); 6] = [
            ("path", b"a/real/name"),
            ("mtime", b"-1.5"),
            ("uid", b"4000000000"),
            ("size", b"3"),
            ("SCHILY.xattr.security.capability", capability),
            ("comment", b"ignored"),
        ];
        builder.append_pax_extensions(records).unwrap();
        let mut file = header(::tar::EntryType::Regular, 3);
        builder.append_data(&mut file, "short", &b"abc"[..]).unwrap();
        builder.append_data(&mut file, "next", &b"xyz"[..]).unwrap();
    });
    let members = read(&bytes).unwrap();
    assert_eq!(members[0].name, b"a/real/name");
    assert_eq!(members[0].mtime, Timestamp { seconds: -2, nanoseconds: 500_000_000 });
    assert_eq!(members[0].ctime, members[0].mtime);
    assert_eq!(members[0].uid, 4_000_000_000);
    assert_eq!(members[0].xattrs[&b"security.capability"[..]], capability);
    assert_eq!((members[1].name.as_slice(), members[1].xattrs.len()), (&b"next"[..], 0));
}

#[test]
fn old_sparse_files_have_holes() {
    let bytes = archive(|builder| {
        let mut sparse = header(::tar::EntryType::GNUSparse, 1024);
        let gnu = sparse.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(512);
        gnu.sparse[0].set_length(512);
        gnu.sparse[1].set_offset(4096);
        gnu.sparse[1].set_length(512);
        gnu.set_real_size(8192);
        sparse.set_path("s").unwrap();
        sparse.set_cksum();
        let data = [[1u8; 512], [2; 512]].concat();
        builder.append(&sparse, &data[..]).unwrap();
    });
    let members = read(&bytes).unwrap();
    let Kind::File(data) = &members[0].kind else { panic!("{:?}", members[0]) };
    let whole = contents(&bytes, data);
    assert_eq!(whole.len(), 8192);
    assert_eq!((whole[511], whole[512], whole[1024], whole[4096], whole[4608]), (0, 1, 0, 2, 0));
}

#[test]
fn pax_sparse_files_have_holes() {
    let expected = b"\0\0ab\0\0cd\0".to_vec();
    let old: [(&str, &[u8]); 5] = [
        ("GNU.sparse.size", b"9"),
        ("GNU.sparse.offset", b"2"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"6"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let newer: [(&str, &[u8]); 3] =
        [("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"2,2,6,2"), ("GNU.sparse.name", b"s")];
    let newest: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", b"9"),
    ];
    let mut with_map = b"2\n2\n2\n6\n2\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend(b"abcd");
    for (records, stored) in
        [(&old[..], &b"abcd"[..]), (&newer[..], b"abcd"), (&newest[..], &with_map)]
    {
        let bytes = archive(|builder| {
            builder.append_pax_extensions(records.iter().copied()).unwrap();
            let mut file = header(::tar::EntryType::Regular, stored.len() as u64);
            builder.append_data(&mut file, "s", stored).unwrap();
        });
        let members = read(&bytes).unwrap();
        let Kind::File(data) = &members[0].kind else { panic!("{:?}", members[0]) };
        assert_eq!(
            (members[0].name.as_slice(), contents(&bytes, data)),
            (&b"s"[..], expected.clone())
        );
    }
}

#[test]
fn a_sparse_map_that_lies_is_refused() {
    for map in ["0,5", "4,2,2,2", "0,2,1,2", "0,2", "18446744073709551615,4", "0,2,8,2", "a", "1"] {
        let bytes = archive(|builder| {
            let records: [(&str, &[u8]); 2] =
                [("GNU.sparse.size", b"9"), ("GNU.sparse.map", map.as_bytes())];
            builder.append_pax_extensions(records).unwrap();
            let mut file = header(::tar::EntryType::Regular, 4);
            builder.append_data(&mut file, "s", &b"abcd"[..]).unwrap();
        });
        assert!(rule(&bytes).contains("sparse map"), "{map}: {}", rule(&bytes));
    }
}

#[test]
fn a_cut_anywhere_is_an_error_or_the_end_between_members() {
    let bytes = archive(|builder| {
        let mut file = header(::tar::EntryType::Regular, 600);
        builder.append_data(&mut file, "a".repeat(130), &[7; 600][..]).unwrap();
        builder.append_data(&mut file, "b", &[7; 600][..]).unwrap();
    });
    for size in 0..bytes.len() {
        match read(&bytes[..size]) {
            Ok(members) => {
                let complete = [0, 3, 6].map(|blocks| blocks * 512);
                assert!(members.len() <= 2 && complete.iter().any(|end| size >= *end), "{size}");
            }
            Err(error) => {
                assert!(matches!(error, TarError::Truncated { .. } | TarError::Header { .. }));
            }
        }
    }
    // The second member's data ends at block 8; cut before, it is an error.
    assert!(read(&bytes[..5 * 512 + 512 + 100]).is_err());
}

#[test]
fn a_flipped_byte_in_a_header_breaks_its_checksum() {
    let bytes = archive(|builder| {
        let mut file = header(::tar::EntryType::Regular, 0);
        builder.append_data(&mut file, "a", &b""[..]).unwrap();
    });
    let mut bad = bytes;
    bad[101] ^= 1;
    assert!(rule(&bad).contains("checksum"));
}

#[test]
fn headers_that_ask_for_much_memory_are_refused() {
    for kind in [::tar::EntryType::GNULongName, ::tar::EntryType::XHeader] {
        let mut bytes = Vec::new();
        let mut long = header(kind, 1 << 40);
        long.set_path("x").unwrap();
        long.set_cksum();
        bytes.extend(long.as_bytes());
        assert!(rule(&bytes).contains("more than"), "{}", rule(&bytes));
    }
}

#[test]
fn sizes_beyond_the_archive_are_refused() {
    let mut bytes = Vec::new();
    for size in [513, i64::MAX.cast_unsigned(), u64::MAX] {
        bytes.clear();
        let mut file = header(::tar::EntryType::Regular, size);
        file.set_path("x").unwrap();
        file.set_cksum();
        bytes.extend(file.as_bytes());
        bytes.extend([0; 512]);
        assert!(read(&bytes).is_err(), "{size}");
    }
}

#[test]
fn links_and_directories_have_no_data() {
    let bytes = archive(|builder| {
        let mut directory = header(::tar::EntryType::Directory, 0);
        directory.set_size(4096);
        directory.set_path("d").unwrap();
        directory.set_cksum();
        builder.append(&directory, &b""[..]).unwrap();
        let mut file = header(::tar::EntryType::Regular, 0);
        builder.append_data(&mut file, "e/", &b""[..]).unwrap();
    });
    let members = read(&bytes).unwrap();
    assert_eq!([&members[0].kind, &members[1].kind], [&Kind::Directory; 2]);
}

#[test]
fn an_extension_header_at_the_end_describes_nothing() {
    let bytes = archive(|builder| {
        let records: [(&str, &[u8]); 1] = [("path", b"a")];
        builder.append_pax_extensions(records).unwrap();
    });
    assert!(rule(&bytes).contains("without the member"));
}
