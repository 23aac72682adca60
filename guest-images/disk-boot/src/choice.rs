//! Which kernel is booted: the first that a boot loader of the disk offers and that is there.
//!
//! A disk may hold several configurations. GRUB's come first, on the file systems in their order, then
//! the stubs that lead to them, systemd-boot's and syslinux'. What a configuration offers is tried in
//! its order, its default first; what does not work out is said in the error if nothing does.

use crate::config::{Offer, bls, grub, syslinux};
use crate::filesystem::{FileError, Path};
use crate::volumes::{Place, Volumes};

/// Bytes of a command line: what x86 takes (`COMMAND_LINE_SIZE` of Linux, with its zero).
pub const CMDLINE_SIZE_MAX: usize = 2047;
/// Reasons that an error repeats.
const REASON_COUNT_MAX: usize = 8;
/// Characters of a reason that an error repeats.
const REASON_SIZE_MAX: usize = 200;

/// Where GRUB's configuration is.
const GRUB: [&str; 4] =
    ["/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg"];
/// Where vendors keep a configuration that leads to GRUB's, each in a folder of its own.
const VENDORS: &str = "/EFI";
/// Where syslinux' configuration is.
const SYSLINUX: [&str; 8] = [
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
    "/syslinux.cfg",
];

/// A file to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The volume that it is on.
    pub volume: usize,
    /// Where it is there, without links.
    pub path: Path,
    /// Its bytes.
    pub size: u64,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The configuration that says so.
    pub config: String,
    /// What its menu says.
    pub title: String,
    /// The kernel.
    pub kernel: File,
    /// Its initial file systems.
    pub initrds: Vec<File>,
    /// Its command line, without what the host adds.
    pub cmdline: String,
}

/// Why nothing is booted.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Nothing on the disk is a file system that can be read.
    #[error("the disk has no file system that can be read{}", list(.0))]
    NoVolume(Vec<String>),
    /// No boot loader's configuration.
    #[error("the disk has no configuration of GRUB, systemd-boot or syslinux{}", list(.0))]
    NoConfig(Vec<String>),
    /// None that leads to a kernel.
    #[error("no boot entry leads to a kernel{}", list(.0))]
    NoKernel(Vec<String>),
}

fn list(reasons: &[String]) -> String {
    let shown = reasons.iter().take(REASON_COUNT_MAX);
    let shown = shown.map(|reason| {
        let plain = reason.chars().filter(|letter| !letter.is_control());
        format!("; {}", plain.take(REASON_SIZE_MAX).collect::<String>())
    });
    shown.collect()
}

/// Finds what is booted.
///
/// # Errors
/// [`ChoiceError`].
pub fn choose(volumes: &Volumes) -> Result<Choice, ChoiceError> {
    if volumes.all.is_empty() {
        return Err(ChoiceError::NoVolume(volumes.others.clone()));
    }
    let mut seeker = Seeker { volumes, reasons: Vec::new(), has_config: false };
    if let Some(choice) = seeker.seek() {
        return Ok(choice);
    }
    let Seeker { mut reasons, has_config, .. } = seeker;
    reasons.extend(volumes.others.iter().cloned());
    Err(if has_config { ChoiceError::NoKernel(reasons) } else { ChoiceError::NoConfig(reasons) })
}

struct Seeker<'a> {
    volumes: &'a Volumes,
    reasons: Vec<String>,
    has_config: bool,
}

impl Seeker<'_> {
    fn seek(&mut self) -> Option<Choice> {
        self.grub()
            .or_else(|| self.stubs())
            .or_else(|| self.systemd_boot())
            .or_else(|| self.syslinux())
    }

    fn grub(&mut self) -> Option<Choice> {
        (0..self.volumes.all.len()).find_map(|volume| {
            let mut places = GRUB.iter().map(|path| Place { volume, path: (*path).to_owned() });
            places.find_map(|place| self.grub_at(&place))
        })
    }

    fn grub_at(&mut self, place: &Place) -> Option<Choice> {
        let offers = grub::offers(self.volumes, place).map_err(|error| error.to_string());
        self.first(place, offers)
    }

    fn stubs(&mut self) -> Option<Choice> {
        (0..self.volumes.all.len()).find_map(|volume| {
            // A folder that can't be read has no stubs.
            let folder = Place { volume, path: VENDORS.to_owned() };
            let vendors = self.volumes.list(&folder).unwrap_or_default();
            vendors.iter().find_map(|vendor| {
                self.grub_at(&Place { volume, path: format!("{VENDORS}/{vendor}/grub.cfg") })
            })
        })
    }

    fn systemd_boot(&mut self) -> Option<Choice> {
        (0..self.volumes.all.len()).find_map(|volume| {
            let place = Place { volume, path: "/loader/entries".to_owned() };
            let offers = bls::offers(self.volumes, volume).map_err(|error| error.to_string());
            let offers = offers.map(|offers| (!offers.is_empty()).then_some(offers));
            self.first(&place, offers)
        })
    }

    fn syslinux(&mut self) -> Option<Choice> {
        (0..self.volumes.all.len()).find_map(|volume| {
            SYSLINUX.iter().find_map(|path| {
                let place = Place { volume, path: (*path).to_owned() };
                let offers = syslinux::offers(self.volumes, &place);
                self.first(&place, offers.map_err(|error| error.to_string()))
            })
        })
    }

    /// The first of the offers whose files are there.
    fn first(
        &mut self,
        place: &Place,
        offers: Result<Option<Vec<Offer>>, String>,
    ) -> Option<Choice> {
        let config = format!("({}){}", self.volumes.name(place.volume), place.path);
        let offers = match offers {
            Ok(Some(offers)) => offers,
            Ok(None) => return None,
            Err(reason) => {
                self.has_config = true;
                self.reasons.push(format!("{config}: {reason}"));
                return None;
            }
        };
        self.has_config = true;
        for offer in offers {
            match self.check(&config, &offer) {
                Ok(choice) => return Some(choice),
                Err(reason) => self.reasons.push(format!("{config}, {:?}: {reason}", offer.title)),
            }
        }
        None
    }

    fn check(&self, config: &str, offer: &Offer) -> Result<Choice, String> {
        let kernel = offer.kernel.as_ref().ok_or("it starts no Linux kernel")?;
        let kernel = self.file(kernel)?;
        let initrds = offer.initrds.iter().map(|place| self.file(place));
        let initrds = initrds.collect::<Result<Vec<_>, _>>()?;
        let size = offer.cmdline.len();
        if size > CMDLINE_SIZE_MAX {
            return Err(format!("its command line has {size} bytes, at most {CMDLINE_SIZE_MAX}"));
        }
        let words = offer.cmdline.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(letter) = words.chars().find(|letter| letter.is_control()) {
            return Err(format!("its command line has a control character, {letter:?}"));
        }
        let (config, title) = (config.to_owned(), offer.title.clone());
        Ok(Choice { config, title, kernel, initrds, cmdline: words })
    }

    fn file(&self, place: &Place) -> Result<File, String> {
        let Place { volume, path } = place;
        let found = self.volumes.file(place).map_err(|error: FileError| error.to_string())?;
        let (path, size) =
            found.ok_or_else(|| format!("({}){path} is not there", self.volumes.name(*volume)))?;
        Ok(File { volume: *volume, path, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::testing::Memory;
    use crate::volumes::testing::volumes;

    const MENU: &str =
        "menuentry a { linux /boot/gone x }\nmenuentry b { linux /boot/k  y\n initrd /boot/i }\n";
    const BOTH: [(&str, &str); 2] = [("boot/k", "-> kernel-6"), ("boot/kernel-6", "kernel")];

    fn chosen(files: &[(&str, &str)]) -> Result<Choice, String> {
        choose(&volumes(vec![Memory::new("u", files)])).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_entry_whose_files_are_there_is_booted() {
        let files = [&BOTH[..], &[("boot/grub/grub.cfg", MENU), ("boot/i", "init")]].concat();
        let choice = chosen(&files).unwrap();
        assert_eq!((choice.title.as_str(), choice.cmdline.as_str()), ("b", "y"));
        assert_eq!(choice.config, "(hd0,gpt1)/boot/grub/grub.cfg");
        assert_eq!((choice.kernel.path.join("/"), choice.kernel.size), ("boot/kernel-6".into(), 6));
        assert_eq!(choice.initrds.len(), 1);
        let error = chosen(&files[..3]).unwrap_err();
        let expected = "no boot entry leads to a kernel; \
                        (hd0,gpt1)/boot/grub/grub.cfg, \"a\": (hd0,gpt1)/boot/gone is not there; \
                        (hd0,gpt1)/boot/grub/grub.cfg, \"b\": (hd0,gpt1)/boot/i is not there";
        assert_eq!(error, expected);
    }

    #[test]
    fn whatever_boot_loader_there_is_is_asked() {
        let syslinux = ("boot/extlinux/extlinux.conf", "label l\nlinux ../k\nappend s\n");
        let entry = ("loader/entries/e.conf", "linux /boot/k\noptions e\n");
        let stub = ("EFI/debian/grub.cfg", "menuentry x { linux /boot/k stub }\n");
        let broken = ("boot/grub/grub.cfg", "if x; then\n");
        let mut files = BOTH.to_vec();
        for (config, cmdline) in [(syslinux, "s"), (entry, "e"), (stub, "stub"), (broken, "stub")] {
            files.push(config);
            assert_eq!(chosen(&files).unwrap().cmdline, cmdline);
        }
        let error = chosen(&[broken]).unwrap_err();
        assert!(error.contains("grub.cfg: line 2: an `if` without"), "{error}");
    }

    #[test]
    fn what_can_not_be_booted_is_told() {
        let error = choose(&Volumes {
            others: vec!["partition 1: XFS, which is not read".into()],
            ..Volumes::default()
        });
        let expected =
            "the disk has no file system that can be read; partition 1: XFS, which is not read";
        assert_eq!(error.unwrap_err().to_string(), expected);
        assert!(chosen(&[]).unwrap_err().starts_with("the disk has no configuration of GRUB"));
        let long = format!("menuentry a {{ linux /boot/k {} }}", "x".repeat(2048));
        let files = [&BOTH[..], &[("boot/grub/grub.cfg", long.as_str())]].concat();
        assert!(chosen(&files).unwrap_err().contains("2048 bytes, at most 2047"));
        let bell = "menuentry a { linux /boot/k '\u{7}' }";
        let files = [&BOTH[..], &[("boot/grub/grub.cfg", bell)]].concat();
        let error = chosen(&files).unwrap_err();
        assert!(error.contains("control character") && !error.contains('\u{7}'), "{error}");
    }
}
