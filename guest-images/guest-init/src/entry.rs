//! Which program becomes the guest's own init, with which environment.
//!
//! The order is the contract's (`reference/zero-os.md` 4.7, `reference/flist.md` 1.4): the
//! workload's entrypoint in `zosrc`, then `init=` of the kernel command line, then what the image
//! brings in `/.startup.toml`, then `/sbin/init`. Of the environment the image's part is the base
//! and the workload's wins.

use crate::startup::Startup;
use crate::zosrc::Zosrc;

/// What to start.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Environment, each name once.
    pub env: Vec<(String, String)>,
    /// Working folder.
    pub dir: String,
    /// Who chose the program, for messages.
    pub chosen_by: &'static str,
}

impl Entry {
    /// Chooses the program and merges the environment.
    #[must_use]
    pub fn resolve(zosrc: &Zosrc, cmdline: Option<&[String]>, image: &Startup) -> Self {
        let mut dir = None;
        let (argv, chosen_by) = if let Some(init) = zosrc.init.as_ref().filter(|i| !i.is_empty()) {
            let argv = std::iter::once(init).chain(&zosrc.args);
            (argv.cloned().collect(), "the workload's entrypoint")
        } else if let Some(argv) = cmdline.filter(|argv| !argv.is_empty()) {
            (argv.to_vec(), "the kernel command line")
        } else if !image.argv.is_empty() {
            dir.clone_from(&image.dir);
            (image.argv.clone(), "the image's /.startup.toml")
        } else {
            let argv = std::iter::once("/sbin/init".to_owned()).chain(zosrc.args.iter().cloned());
            (argv.collect(), "default")
        };
        let env = merge(&image.env, &zosrc.env);
        Self { argv, env, dir: dir.unwrap_or_else(|| "/".to_owned()), chosen_by }
    }

    /// The paths at which the program may be: itself if it has a slash, else below each folder of
    /// `PATH`.
    #[must_use]
    pub fn candidates(&self) -> Vec<String> {
        let Some(program) = self.argv.first() else { return Vec::new() };
        if program.contains('/') {
            return vec![program.clone()];
        }
        let path = self.env.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
        let folders = path.split(':').filter(|folder| folder.starts_with('/'));
        folders.take(PATH_FOLDERS_MAX).map(|folder| format!("{folder}/{program}")).collect()
    }
}

fn merge(image: &[(String, String)], workload: &[(String, String)]) -> Vec<(String, String)> {
    let base = [("PATH", DEFAULT_PATH), ("HOME", "/"), ("TERM", "linux")];
    let base = base.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in base.iter().chain(image).chain(workload) {
        match env.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    env
}

/// `PATH` where neither image nor workload sets one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most folders of `PATH` that are searched.
const PATH_FOLDERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn zosrc(text: &str) -> Zosrc {
        Zosrc::parse(text).unwrap()
    }

    fn image() -> Startup {
        Startup {
            argv: words("/bin/server -v"),
            dir: Some("/srv".into()),
            env: vec![("A".into(), "image".into()), ("B".into(), "image".into())],
        }
    }

    #[test]
    fn the_workload_wins_over_everybody() {
        let z = zosrc("export A='workload'\ninit='/sbin/zinit'\nset -- 'init'\n");
        let entry = Entry::resolve(&z, Some(&words("/cmd")), &image());
        assert_eq!(entry.argv, ["/sbin/zinit", "init"]);
        assert_eq!(entry.dir, "/");
        let value = |name: &str| entry.env.iter().find(|(n, _)| n == name).unwrap().1.clone();
        assert_eq!((value("A"), value("B")), ("workload".into(), "image".into()));
        assert_eq!(value("PATH"), DEFAULT_PATH);
    }

    #[test]
    fn the_others_follow_in_order() {
        let none = Zosrc::default();
        assert_eq!(Entry::resolve(&none, Some(&words("/cmd x")), &image()).argv, ["/cmd", "x"]);
        let own = Entry::resolve(&none, None, &image());
        assert_eq!((own.argv, own.dir.as_str()), (words("/bin/server -v"), "/srv"));
        let last = Entry::resolve(&zosrc("init=''\nset -- 'a'"), None, &Startup::default());
        assert_eq!((last.argv, last.chosen_by), (words("/sbin/init a"), "default"));
    }

    #[test]
    fn a_bare_name_is_searched_in_path() {
        let z = zosrc("export PATH='/a:b::/c'\ninit='nginx'");
        let entry = Entry::resolve(&z, None, &Startup::default());
        assert_eq!(entry.candidates(), ["/a/nginx", "/c/nginx"]);
        let z = zosrc("init='bin/x'");
        assert_eq!(Entry::resolve(&z, None, &Startup::default()).candidates(), ["bin/x"]);
    }
}
