//! Files that the init writes into the root, as text: `hosts`, `resolv.conf`, `authorized_keys`,
//! and what it reads there of users.
//!
//! All functions are pure; a second boot over the same root changes nothing.

use std::net::IpAddr;

/// `/etc/hosts` with the names that every program expects; `None` if they are there already.
#[must_use]
pub fn hosts(existing: &str, hostname: Option<&str>) -> Option<String> {
    let named = |name: &str| {
        existing.lines().any(|line| {
            let line = line.split('#').next().unwrap_or_default();
            line.split_ascii_whitespace().skip(1).any(|word| word == name)
        })
    };
    let mut added = String::new();
    if !named("localhost") {
        added += "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    }
    if let Some(name) = hostname.filter(|name| !named(name)) {
        added += &format!("127.0.1.1\t{name}\n");
    }
    (!added.is_empty()).then(|| ended(existing) + &added)
}

/// `/etc/resolv.conf`; `None` if there are no servers, so that the image's own stays.
#[must_use]
pub fn resolv_conf<'a>(
    servers: impl IntoIterator<Item = &'a IpAddr>,
    search: impl IntoIterator<Item = &'a String>,
) -> Option<String> {
    let mut lines: Vec<String> = Vec::new();
    for server in servers {
        let line = format!("nameserver {server}");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        return None;
    }
    let mut domains: Vec<&str> = Vec::new();
    for domain in search {
        if !domains.contains(&domain.as_str()) {
            domains.push(domain);
        }
    }
    if !domains.is_empty() {
        lines.insert(0, format!("search {}", domains.join(" ")));
    }
    Some(lines.join("\n") + "\n")
}

/// `authorized_keys` with `keys` in it; `None` if they all are already.
#[must_use]
pub fn authorized_keys(existing: &str, keys: &[String]) -> Option<String> {
    let mut out = ended(existing);
    let mut changed = false;
    for key in keys {
        if !out.lines().any(|line| line.trim() == key) {
            out += key;
            out.push('\n');
            changed = true;
        }
    }
    changed.then_some(out)
}

/// Where a user lives and who he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home folder, absolute.
    pub home: String,
}

/// Looks `name` up in the text of `/etc/passwd`. `root` is there in any case.
#[must_use]
pub fn account(passwd: &str, name: &str) -> Option<Account> {
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| home.starts_with('/'))?;
        Some(Account { uid, gid, home: home.to_owned() })
    });
    let root = || Account { uid: 0, gid: 0, home: "/root".to_owned() };
    found.or_else(|| (name == "root").then(root))
}

fn ended(text: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_completed_once() {
        let first = hosts("", Some("vm")).unwrap();
        assert!(first.starts_with("127.0.0.1\tlocalhost\n::1\t"));
        assert!(first.ends_with("127.0.1.1\tvm\n"));
        assert_eq!(hosts(&first, Some("vm")), None);
        assert_eq!(hosts(&first, None), None);
        assert_eq!(
            hosts("127.0.0.1 localhost", Some("a")).unwrap(),
            "127.0.0.1 localhost\n127.0.1.1\ta\n"
        );
        assert!(hosts("# 1.1.1.1 localhost\n", None).is_some());
    }

    #[test]
    fn resolv_conf_lists_each_server_once() {
        let servers: Vec<IpAddr> =
            ["8.8.8.8", "2001:4860:4860::8888", "8.8.8.8"].map(|a| a.parse().unwrap()).to_vec();
        let search = vec!["a.b".to_owned(), "c".to_owned(), "c".to_owned()];
        assert_eq!(
            resolv_conf(&servers, &search).unwrap(),
            "search a.b c\nnameserver 8.8.8.8\nnameserver 2001:4860:4860::8888\n"
        );
        assert_eq!(resolv_conf(&[], &search), None);
    }

    #[test]
    fn keys_are_added_once() {
        let keys = vec!["ssh-ed25519 A x".to_owned(), "ssh-rsa B".to_owned()];
        let first = authorized_keys("ssh-rsa B", &keys).unwrap();
        assert_eq!(first, "ssh-rsa B\nssh-ed25519 A x\n");
        assert_eq!(authorized_keys(&first, &keys), None);
        assert_eq!(authorized_keys("", &[]), None);
    }

    #[test]
    fn accounts_come_from_passwd() {
        let passwd = "root:x:0:0:root:/home/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n\
                      bad:x:y:1::/x:\nrel:x:1:1::x:\n";
        let root = account(passwd, "root").unwrap();
        assert_eq!(root.home, "/home/root");
        let ann = Account { uid: 1000, gid: 1001, home: "/home/ann".into() };
        assert_eq!(account(passwd, "ann"), Some(ann));
        assert_eq!(account(passwd, "bad"), None);
        assert_eq!(account(passwd, "rel"), None);
        assert_eq!(account(passwd, "bob"), None);
        assert_eq!(account("", "root").unwrap().home, "/root");
    }
}
