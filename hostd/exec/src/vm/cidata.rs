//! The disk by which a guest learns who it is: a small FAT volume labelled `cidata`.
//!
//! Four files, as cloud-init knows them and existing nodes write them (`reference: zero-os 4.7`):
//! `meta-data`, `network-config` (version 2), `user-data` (keys and mounts) and `zosrc`
//! ([`super::entry`]). The first three are YAML; what is written is JSON, which is YAML too and leaves no
//! text a way out of its quotes.
//!
//! The volume holds the environment of a workload, which is secret: its file is made with mode 0600,
//! appears whole or not at all, and goes with the machine.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use hostd_grid::address::Cidr;
use hostd_grid::derived::MacAddress;
use hostd_grid::secret::SecretText;
use serde_json::{Value, json};

/// Size of the volume: what existing nodes give, and much more than the files need.
pub const VOLUME_SIZE: u64 = 2 << 20;
/// In lower case, which is what existing guests look for.
const LABEL: [u8; 11] = *b"cidata     ";
/// Bytes of a YAML file that our guests read.
const YAML_SIZE_MAX: usize = 200 << 10;
/// Where cloud-init puts the environment of a whole disk's machine: systemd's services can name it as
/// their `EnvironmentFile`, and shells read it by [`PROFILE`].
const ENVIRONMENT: &str = "/etc/zero-os/environment";
/// What login shells read; those of root may read the environment.
const PROFILE: &str = "/etc/profile.d/zero-os.sh";
const PROFILE_TEXT: &str = "if [ -r /etc/zero-os/environment ]; then\n    set -a\n    \
                            . /etc/zero-os/environment\n    set +a\nfi\n";
/// Most keys that may log in.
pub const KEY_COUNT_MAX: usize = 256;

/// What a guest is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CiData {
    /// What makes the instance another one.
    pub instance: String,
    /// Its host name.
    pub hostname: String,
    /// Its network cards, in the order in which it has them.
    pub cards: Vec<Card>,
    /// Lines of root's `authorized_keys`.
    pub keys: Vec<String>,
    /// What to mount.
    pub mounts: Vec<Mounted>,
    /// The environment as a file of lines `NAME="value"`, for a guest that knows no `zosrc`.
    pub environment: Option<SecretText>,
    /// The text of `zosrc`.
    pub zosrc: String,
}

/// A network card, as its guest is to set it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// How the guest finds it.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// Where to send what, beyond the networks of the addresses.
    pub routes: Vec<Route>,
    /// Whom to ask for names.
    pub nameservers: Vec<IpAddr>,
    /// Largest packet, in bytes.
    pub mtu: Option<u16>,
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to; a length of 0 is everything.
    pub to: Cidr,
    /// By whom.
    pub via: IpAddr,
}

/// Something to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// A device's path or a tag.
    pub source: String,
    /// Where.
    pub target: String,
    /// `auto`, or `virtiofs`.
    pub kind: &'static str,
    /// How.
    pub options: &'static str,
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum CiDataError {
    /// The machine could not read it.
    #[error(
        "what the machine is told in {file} has {size} bytes, at most {YAML_SIZE_MAX} are allowed"
    )]
    Size {
        /// Which file.
        file: &'static str,
        /// Its size.
        size: usize,
    },
    /// The system said no.
    #[error("the machine's first disk can't be written: {0}")]
    Io(#[from] io::Error),
}

/// The keys in the variable `SSH_KEY`, which holds several, by lines or commas.
pub fn keys(variable: &str) -> Vec<String> {
    let keys = variable.split(['\n', '\r', ',']).map(str::trim);
    keys.filter(|key| !key.is_empty()).take(KEY_COUNT_MAX).map(str::to_owned).collect()
}

impl CiData {
    /// Writes the disk to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`CiDataError`].
    pub fn write(&self, path: &Path) -> Result<(), CiDataError> {
        let volume = self.volume()?;
        let temporary = path.with_extension("tmp");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&volume)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// The bytes of the volume. Equal contents give equal bytes.
    ///
    /// # Errors
    /// [`CiDataError::Size`].
    pub fn volume(&self) -> Result<Vec<u8>, CiDataError> {
        let mut files = Vec::new();
        for (file, value) in [
            ("meta-data", self.meta_data()),
            ("network-config", self.network_config()),
            ("user-data", self.user_data()),
        ] {
            let text = format!("#cloud-config\n{value:#}\n");
            if text.len() > YAML_SIZE_MAX {
                return Err(CiDataError::Size { file, size: text.len() });
            }
            files.push((file, text));
        }
        files.push(("zosrc", self.zosrc.clone()));
        Ok(volume_of(&files)?)
    }

    fn meta_data(&self) -> Value {
        json!({ "instance-id": self.instance, "local-hostname": self.hostname })
    }

    fn network_config(&self) -> Value {
        let cards = self.cards.iter().enumerate();
        let cards = cards.map(|(index, card)| (format!("eth{index}"), card.network_config()));
        json!({ "version": 2, "ethernets": cards.collect::<serde_json::Map<_, _>>() })
    }

    fn user_data(&self) -> Value {
        let mounts = self
            .mounts
            .iter()
            .map(|mount| json!([mount.source, mount.target, mount.kind, mount.options, "0", "0"]));
        let mut data = json!({
            "users": [{ "name": "root", "ssh_authorized_keys": self.keys }],
            "mounts": mounts.collect::<Vec<_>>(),
        });
        if let Some(environment) = &self.environment {
            // For root alone: what is in it is as secret as it was.
            data["write_files"] = json!([
                { "path": ENVIRONMENT, "permissions": "0600", "content": environment.expose() },
                { "path": PROFILE, "permissions": "0644", "content": PROFILE_TEXT },
            ]);
        }
        data
    }
}

impl Card {
    fn network_config(&self) -> Value {
        let addresses: Vec<_> = self.addresses.iter().map(Cidr::to_string).collect();
        let mut card = json!({
            "match": { "macaddress": self.mac.to_string() },
            "dhcp4": false,
            "addresses": addresses,
        });
        let mut routes = Vec::new();
        for Route { to, via } in &self.routes {
            // What existing guests understand best is the oldest way to say it.
            let gateway = if via.is_ipv4() { "gateway4" } else { "gateway6" };
            match to.prefix_len() {
                0 if card.get(gateway).is_none() => card[gateway] = json!(via),
                _ => routes.push(json!({ "to": to.to_string(), "via": via })),
            }
        }
        if !routes.is_empty() {
            card["routes"] = json!(routes);
        }
        if !self.nameservers.is_empty() {
            card["nameservers"] = json!({ "addresses": self.nameservers });
        }
        if let Some(mtu) = self.mtu {
            card["mtu"] = json!(mtu);
        }
        card
    }
}

fn volume_of(files: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let size = usize::try_from(VOLUME_SIZE).map_err(io::Error::other)?;
    let mut volume = io::Cursor::new(vec![0; size]);
    format_volume(&mut volume, FormatVolumeOptions::new().volume_label(LABEL))?;
    volume.seek(SeekFrom::Start(0))?;
    {
        // Without a clock: equal contents give equal bytes.
        let system = FileSystem::new(&mut volume, FsOptions::new())?;
        for (name, text) in files {
            let mut file = system.root_dir().create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        system.unmount()?;
    }
    Ok(volume.into_inner())
}

/// One file of a volume, for whoever wants to know what a machine was told.
///
/// # Errors
/// There is no such file, or no such volume.
pub fn read(volume: &[u8], name: &str) -> io::Result<Vec<u8>> {
    let mut volume = io::Cursor::new(volume.to_vec());
    let system = FileSystem::new(&mut volume, FsOptions::new())?;
    let mut bytes = Vec::new();
    system.root_dir().open_file(name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt as _;

    use guest_init::cidata as guest;
    use guest_init::fat;

    use super::*;
    use crate::vm::entry;

    fn cidr(text: &str) -> Cidr {
        Cidr::parse(text).unwrap()
    }

    fn sample() -> CiData {
        let secret = SecretText::new("it's\ntwo \"lines\" # $x");
        let env = BTreeMap::from([("A".to_owned(), secret)]);
        let card = Card {
            mac: MacAddress::from_bytes([2, 1, 2, 3, 4, 5]),
            addresses: vec![cidr("10.20.2.5/24"), cidr("fd00::5/64")],
            routes: vec![
                Route { to: cidr("0.0.0.0/0"), via: "10.20.2.1".parse().unwrap() },
                Route { to: cidr("400::/7"), via: "fe80::1".parse().unwrap() },
            ],
            nameservers: vec!["8.8.8.8".parse().unwrap()],
            mtu: Some(1400),
        };
        CiData {
            instance: "1-2-vm".into(),
            hostname: "my_vm".into(),
            cards: vec![card],
            keys: keys("ssh-ed25519 AAA me\n\n ssh-rsa BBB \"you\",ssh-rsa C"),
            mounts: vec![
                Mounted {
                    source: "/dev/disk/by-id/virtio-YYzBJUHjASz9U".into(),
                    target: "/data".into(),
                    kind: "auto",
                    options: "defaults",
                },
                Mounted {
                    source: "shared".into(),
                    target: "/s".into(),
                    kind: "virtiofs",
                    options: "defaults",
                },
            ],
            environment: None,
            zosrc: entry::zosrc(&env, "/bin/sh -c 'echo \"hi\"'").unwrap(),
        }
    }

    /// What our own guests make of it.
    fn as_a_guest_reads(volume: &[u8]) -> guest::CiData {
        let volume = fat::Volume::open(volume).unwrap();
        assert_eq!(volume.label().unwrap(), "cidata");
        let file = |name: &str| volume.read(name).unwrap().unwrap();
        guest::CiData::parse(&guest::Files {
            meta_data: file("meta-data"),
            network_config: file("network-config"),
            user_data: file("user-data"),
            zosrc: file("zosrc"),
        })
        .unwrap()
    }

    #[test]
    fn a_guest_reads_what_was_meant() {
        let data = as_a_guest_reads(&sample().volume().unwrap());
        assert_eq!(data.hostname.as_deref(), Some("my_vm"));
        let card = &data.interfaces[0];
        assert_eq!(card.mac, [2, 1, 2, 3, 4, 5]);
        assert_eq!(card.addresses.len(), 2);
        let routes: Vec<_> =
            card.routes.iter().map(|route| (route.to.to_string(), route.via.unwrap())).collect();
        let via = |text: &str| text.parse().unwrap();
        let expected =
            [("0.0.0.0/0".to_owned(), via("10.20.2.1")), ("400::/7".to_owned(), via("fe80::1"))];
        assert_eq!(routes, expected);
        assert_eq!(card.mtu, Some(1400));
        assert_eq!(card.nameservers, ["8.8.8.8".parse::<IpAddr>().unwrap()]);
        let user = &data.users[0];
        assert_eq!(user.name, "root");
        assert_eq!(user.keys, ["ssh-ed25519 AAA me", "ssh-rsa BBB \"you\"", "ssh-rsa C"]);
        assert_eq!(data.mounts.len(), 2);
        assert_eq!(data.zosrc.env, [("A".to_owned(), "it's\ntwo \"lines\" # $x".to_owned())]);
        assert_eq!(data.zosrc.init.as_deref(), Some("/bin/sh"));
        assert_eq!(data.zosrc.args, ["-c", "echo \"hi\""]);
    }

    #[test]
    fn cloud_init_gets_the_environment_as_a_file_of_roots() {
        let mut data = sample();
        let text = "A=\"it's\\n$x\"\n";
        data.environment = Some(SecretText::new(text));
        let user_data = read(&data.volume().unwrap(), "user-data").unwrap();
        let user_data = String::from_utf8(user_data).unwrap();
        let user_data = user_data.strip_prefix("#cloud-config\n").unwrap();
        let user_data: Value = serde_json::from_str(user_data).unwrap();
        let file = &user_data["write_files"][0];
        assert_eq!((&file["path"], &file["permissions"]), (&json!(ENVIRONMENT), &json!("0600")));
        assert_eq!(file["content"], text);
        assert!(user_data["write_files"][1]["content"].as_str().unwrap().contains(ENVIRONMENT));
        assert!(!sample().user_data().to_string().contains("write_files"));
    }

    #[test]
    fn equal_contents_are_equal_bytes_in_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cidata.img");
        sample().write(&path).unwrap();
        let first = std::fs::read(&path).unwrap();
        sample().write(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(first.len() as u64, VOLUME_SIZE);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&first, "zosrc").unwrap(), sample().zosrc.as_bytes());
        assert!(read(&first, "none").is_err());
    }

    #[test]
    fn hostile_keys_stay_keys_and_too_much_is_refused() {
        let mut data = sample();
        data.keys = keys("ssh-rsa A\", \"b\": [\u{7} \\ ]}");
        assert_eq!(as_a_guest_reads(&data.volume().unwrap()).users.len(), 1);
        data.keys = vec!["x".repeat(YAML_SIZE_MAX)];
        let error = data.volume().unwrap_err().to_string();
        assert!(error.contains("user-data has"), "{error}");
    }
}
