//! syslinux and extlinux: labels, each with a kernel, what is appended, and initial file systems
//! (<https://wiki.syslinux.org/wiki/index.php?title=Config>).
//!
//! Keywords are the same in upper and lower case, paths are relative to the file's folder. Only `INCLUDE`
//! is followed, so deep; what draws menus is skipped.

use crate::config::{INITRD_COUNT_MAX, OFFER_COUNT_MAX, Offer};
use crate::filesystem::FileError;
use crate::volumes::{Place, Volumes};

/// Files that are included, in files that are included.
const INCLUDE_COUNT_MAX: usize = 16;

/// A label.
#[derive(Default)]
struct Label {
    name: String,
    kernel: String,
    append: Option<String>,
    initrds: Vec<String>,
    is_default: bool,
}

/// What files say.
#[derive(Default)]
struct Menu {
    labels: Vec<Label>,
    default: String,
    append: String,
    includes_left: usize,
}

/// What the file at a place offers, the default first; none if there is no such file.
///
/// # Errors
/// [`FileError`].
pub fn offers(volumes: &Volumes, place: &Place) -> Result<Option<Vec<Offer>>, FileError> {
    let Some(text) = volumes.text(place)? else { return Ok(None) };
    let folder = place.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut menu = Menu { includes_left: INCLUDE_COUNT_MAX, ..Menu::default() };
    menu.read(volumes, place.volume, folder, &text)?;
    let Menu { mut labels, default, append, .. } = menu;
    // A default that is no label is a menu's program, whose default a label says itself.
    let is_named = labels.iter().any(|label| label.name.eq_ignore_ascii_case(&default));
    labels.sort_by_key(|label| {
        !(if is_named { label.name.eq_ignore_ascii_case(&default) } else { label.is_default })
    });
    let offers = labels.into_iter().map(|label| label.offer(place.volume, folder, &append));
    Ok(Some(offers.collect()))
}

impl Menu {
    fn read(
        &mut self,
        volumes: &Volumes,
        volume: usize,
        folder: &str,
        text: &str,
    ) -> Result<(), FileError> {
        for line in text.lines().map(str::trim) {
            let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            let keyword = keyword.to_ascii_lowercase();
            if keyword == "include" {
                let Some(left) = self.includes_left.checked_sub(1) else { continue };
                self.includes_left = left;
                let name = rest.split_whitespace().next().unwrap_or_default();
                let place = Place { volume, path: absolute(folder, name) };
                if let Some(text) = volumes.text(&place)? {
                    self.read(volumes, volume, folder, &text)?;
                }
                continue;
            }
            self.line(&keyword, rest);
        }
        Ok(())
    }

    fn line(&mut self, keyword: &str, rest: &str) {
        let has_room = self.labels.len() < OFFER_COUNT_MAX;
        match (keyword, self.labels.last_mut()) {
            ("label", _) if has_room => {
                self.labels.push(Label { name: rest.to_owned(), ..Label::default() });
            }
            ("default", _) => rest.clone_into(&mut self.default),
            ("append", None) => rest.clone_into(&mut self.append),
            ("append", Some(label)) => label.append = Some(rest.to_owned()),
            ("linux" | "kernel", Some(label)) => rest.clone_into(&mut label.kernel),
            ("initrd", Some(label)) => label.initrds = list(rest),
            ("menu", Some(label)) => {
                let is_default = rest.to_ascii_lowercase().starts_with("default");
                label.is_default |= is_default && !rest.contains(char::is_whitespace);
            }
            _ => {}
        }
    }
}

impl Label {
    fn offer(self, volume: usize, folder: &str, append: &str) -> Offer {
        let place = |path: &str| Place { volume, path: absolute(folder, path) };
        // A dash means nothing, in place of what is appended to all.
        let append = match self.append.as_deref() {
            Some("-") => "",
            Some(own) => own,
            None => append,
        };
        let mut initrds = self.initrds;
        let mut words = Vec::new();
        for word in append.split_whitespace() {
            match word.strip_prefix("initrd=") {
                Some(paths) => initrds.extend(list(paths)),
                None => words.push(word),
            }
        }
        // Programs of its own are no kernels.
        let is_kernel = !self.kernel.is_empty()
            && ![".c32", ".0", ".bs", ".bin"].iter().any(|end| self.kernel.ends_with(end));
        Offer {
            title: self.name,
            kernel: is_kernel.then(|| place(&self.kernel)),
            initrds: initrds.iter().take(INITRD_COUNT_MAX).map(|path| place(path)).collect(),
            cmdline: words.join(" "),
        }
    }
}

fn list(paths: &str) -> Vec<String> {
    paths.split(',').map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

fn absolute(folder: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::testing::Memory;
    use crate::volumes::testing::volumes;

    fn offered(config: &str, more: &[(&str, &str)]) -> Vec<Offer> {
        let files = [&[("boot/extlinux.conf", config)], more].concat();
        let volumes = volumes(vec![Memory::new("u", &files)]);
        let place = Place { volume: 0, path: "/boot/extlinux.conf".into() };
        offers(&volumes, &place).unwrap().unwrap()
    }

    fn paths(offer: &Offer) -> Vec<&str> {
        let places = offer.kernel.iter().chain(&offer.initrds);
        places.map(|place| place.path.as_str()).collect()
    }

    #[test]
    fn a_menus_default_is_the_label_that_says_so() {
        let config = "# comment\nDEFAULT menu.c32\nPROMPT 0\nMENU TITLE x\nTIMEOUT 10\n\
                      LABEL lts\n  MENU LABEL Linux lts\n  LINUX vmlinuz-lts\n  APPEND a\n\
                      LABEL virt\n  MENU DEFAULT\n  LINUX vmlinuz-virt\n  INITRD u.img,initramfs-virt\n\
                      APPEND root=UUID=1 modules=ext4 rootfstype=ext4\n";
        let offers = offered(config, &[]);
        assert_eq!(offers[0].title, "virt");
        assert_eq!(
            paths(&offers[0]),
            ["/boot/vmlinuz-virt", "/boot/u.img", "/boot/initramfs-virt"]
        );
        assert_eq!(offers[0].cmdline, "root=UUID=1 modules=ext4 rootfstype=ext4");
        assert_eq!(paths(&offers[1]), ["/boot/vmlinuz-lts"]);
    }

    #[test]
    fn files_are_included_and_appended_words_name_file_systems() {
        let config = "default b\nappend all\ninclude sub.cfg\nlabel a\nkernel /k\n";
        let sub = "include sub.cfg\nlabel b\nkernel k2\nappend x initrd=i1,/i2 y\nlabel c\nkernel r.c32\nappend -\n";
        let offers = offered(config, &[("boot/sub.cfg", sub)]);
        assert_eq!(offers[0].title, "b");
        assert_eq!(paths(&offers[0]), ["/boot/k2", "/boot/i1", "/i2"]);
        assert_eq!(offers[0].cmdline, "x y");
        let a = offers.iter().find(|offer| offer.title == "a").unwrap();
        assert_eq!((paths(a), a.cmdline.as_str()), (vec!["/k"], "all"));
        let c = offers.iter().find(|offer| offer.title == "c").unwrap();
        assert_eq!((paths(c), c.cmdline.as_str()), (vec![], ""));
    }
}
