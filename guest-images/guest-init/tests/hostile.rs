//! Whatever bytes it is given, no parser of the init panics, and what it accepts is sound.

use guest_init::cidata::{CiData, Files};
use guest_init::cmdline::CommandLine;
use guest_init::disk::Content;
use guest_init::ext4::Superblock;
use guest_init::fat::Volume;
use guest_init::netlink::verdict;
use guest_init::startup::Startup;
use guest_init::template::Template;
use guest_init::zosrc::Zosrc;
use proptest::collection::vec;
use proptest::prelude::*;

/// A FAT boot sector with sound fixed fields, so that mutations get past the first checks.
fn volume(bytes: &[u8], patches: &[(usize, u8)]) -> Vec<u8> {
    let mut image = vec![0; 64 * 512];
    image.iter_mut().skip(512).zip(bytes).for_each(|(slot, byte)| *slot = *byte);
    let fields = [(12, 2), (13, 1), (14, 1), (16, 1), (17, 16), (19, 64), (22, 1)];
    for (at, value) in fields.into_iter().chain(patches.iter().copied()) {
        image[at] = value;
    }
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// The words that the grammars are made of, in any order.
fn tokens() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("export "),
        Just("K="),
        Just("'"),
        Just("\""),
        Just("\\"),
        Just("\n"),
        Just("set -- "),
        Just("init="),
        Just("$"),
        Just(";"),
        Just("#"),
        Just("mounts: "),
        Just("- "),
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just(", "),
        Just("/dev/vda"),
        Just("/x"),
        Just("users:"),
        Just("  "),
        Just("ethernets: "),
        Just("eth0: "),
        Just("match: "),
        Just("macaddress: "),
        Just("02:01:a0:00:00:09"),
        Just("addresses: "),
        Just("10.0.0.1/8"),
        Just("[startup.entry.args]"),
        Just("name = "),
        Just("env = "),
        Just("&a "),
        Just("*a"),
        Just("? "),
        Just("|"),
        Just("é"),
    ];
    vec(word, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn fat_volumes(
        bytes in vec(any::<u8>(), 0..4096),
        patches in vec((11usize..90, any::<u8>()), 0..6),
    ) {
        let image = volume(&bytes, &patches);
        if let Ok(volume) = Volume::open(&image) {
            let _ = volume.label();
            for name in ["zosrc", "user-data", ""] {
                if let Ok(Some(content)) = volume.read(name) {
                    prop_assert!(content.len() <= guest_init::fat::FILE_BYTES_MAX);
                }
            }
        }
    }

    #[test]
    fn texts(text in tokens()) {
        let _ = Startup::parse(&text);
        let _ = CommandLine::parse(&text);
        if let Ok(zosrc) = Zosrc::parse(&text) {
            prop_assert!(zosrc.env.iter().all(|(name, _)| !name.is_empty()));
        }
        let bytes = text.into_bytes();
        for files in [
            Files { meta_data: bytes.clone(), ..Files::default() },
            Files { network_config: bytes.clone(), ..Files::default() },
            Files { user_data: bytes, ..Files::default() },
        ] {
            if let Ok(data) = CiData::parse(&files) {
                for mount in data.mounts {
                    prop_assert!(mount.target.starts_with('/') && !mount.target.contains("/../"));
                }
            }
        }
    }

    #[test]
    fn quoting_round_trips(value in any::<String>(), arg in any::<String>()) {
        prop_assume!(!value.contains('\0') && !arg.contains('\0'));
        let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
        let text = format!("export K={}\nset -- {}\n", quote(&value), quote(&arg));
        let zosrc = Zosrc::parse(&text).unwrap();
        prop_assert_eq!(zosrc.env, [("K".to_owned(), value)]);
        prop_assert_eq!(zosrc.args, [arg]);
    }

    #[test]
    fn bytes(bytes in vec(any::<u8>(), 0..5000), sequence in any::<u32>()) {
        let _ = Superblock::parse(&bytes);
        let _ = Template::decode(&bytes);
        let _ = Volume::open(&bytes);
        let _ = verdict(&bytes, sequence);
        let blank = bytes.iter().all(|byte| *byte == 0);
        prop_assert_eq!(Content::identify(&bytes, &[]) == Content::Blank, blank);
        prop_assert_eq!(Content::identify(&[], &bytes) == Content::Blank, blank);
    }
}
