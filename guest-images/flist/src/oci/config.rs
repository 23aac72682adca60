//! An image's configuration, and what becomes of it: `.startup.toml` and tags.
//!
//! Entrypoint and Cmd together are the command, Env and WorkingDir go with it into
//! `/.startup.toml`, where nodes look for the command of a workload that names none (`reference:
//! flist 1.4`). What nodes don't act on (user, ports, volumes, labels) is kept as tags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the start-up file in an image's root directory.
pub const STARTUP_NAME: &[u8] = b".startup.toml";

/// The parts of an image configuration that we use (OCI image spec, "Image Configuration"). Fields
/// may be absent or null, as builders write both.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture, in Go's words.
    #[serde(default)]
    pub architecture: Option<String>,
    /// Operating system, in Go's words.
    #[serde(default)]
    pub os: Option<String>,
    /// How to run it.
    #[serde(default)]
    pub config: Option<RunConfig>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// Digests of the uncompressed layers, from the bottom.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RootFs {
    /// One for each layer.
    #[serde(default)]
    pub diff_ids: Option<Vec<String>>,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User, and group behind a colon.
    pub user: Option<String>,
    /// Ports: `80/tcp`.
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// Environment: `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// The command's fixed part.
    pub entrypoint: Option<Vec<String>>,
    /// The command's default arguments, or the command.
    pub cmd: Option<Vec<String>>,
    /// Mount points.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// Where the command starts.
    pub working_dir: Option<String>,
    /// Free text by key.
    pub labels: Option<BTreeMap<String, String>>,
}

/// `/.startup.toml`, as nodes read it.
#[derive(Serialize)]
struct Startup {
    startup: BTreeMap<&'static str, Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    args: Arguments,
}

#[derive(Serialize)]
struct Arguments {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
}

impl RunConfig {
    /// Contents of `/.startup.toml`; none if the image says neither what to run nor in which
    /// environment.
    #[must_use]
    pub fn startup(&self) -> Option<String> {
        let parts = [&self.entrypoint, &self.cmd].into_iter().flatten().flatten();
        let mut command = parts.cloned();
        let variables = self.env.iter().flatten().filter_map(|variable| variable.split_once('='));
        let arguments = Arguments {
            name: command.next(),
            args: command.collect(),
            dir: self.working_dir.clone().unwrap_or_default(),
            env: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        if arguments.name.is_none() && arguments.env.is_empty() {
            return None;
        }
        let entry = Entry { name: "core.system", args: arguments };
        toml::to_string(&Startup { startup: [("entry", entry)].into() }).ok()
    }

    /// Tags for what `/.startup.toml` does not hold.
    #[must_use]
    pub fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::new();
        let mut add = |key: &str, value: String| {
            if !value.is_empty() {
                tags.insert(key.to_owned(), value);
            }
        };
        let keys = |map: &Option<BTreeMap<String, serde_json::Value>>| {
            map.iter().flatten().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(" ")
        };
        add("oci.user", self.user.clone().unwrap_or_default());
        add("oci.ports", keys(&self.exposed_ports));
        add("oci.volumes", keys(&self.volumes));
        for (label, value) in self.labels.iter().flatten() {
            add(&format!("oci.label.{label}"), value.clone());
            // Well-known tags of flists, from the labels of the same meaning.
            match label.as_str() {
                "org.opencontainers.image.version" => add("version", value.clone()),
                "org.opencontainers.image.description" => add("description", value.clone()),
                "org.opencontainers.image.authors" => add("author", value.clone()),
                _ => {}
            }
        }
        tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_config(json: &str) -> RunConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn command_environment_and_directory_go_into_the_startup_file() {
        let config = run_config(
            r#"{"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo \"$A\""], "WorkingDir": "/srv",
                "Env": ["PATH=/bin", "A=b=c", "EMPTY=", "UNSET"], "Volumes": null}"#,
        );
        let expected = "[startup.entry]\nname = \"core.system\"\n\n[startup.entry.args]\n\
            name = \"/bin/sh\"\nargs = [\"-c\", 'echo \"$A\"']\ndir = \"/srv\"\n\n\
            [startup.entry.args.env]\nA = \"b=c\"\nEMPTY = \"\"\nPATH = \"/bin\"\n";
        assert_eq!(config.startup().unwrap(), expected);
    }

    #[test]
    fn a_command_alone_is_the_command() {
        let startup = run_config(r#"{"Entrypoint": null, "Cmd": ["nginx", "-g"]}"#).startup();
        assert!(startup.unwrap().contains("name = \"nginx\"\nargs = [\"-g\"]"));
        assert_eq!(run_config(r#"{"WorkingDir": "/"}"#).startup(), None);
    }

    #[test]
    fn the_rest_becomes_tags() {
        let tags = run_config(
            r#"{"User": "1000:1000", "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/data": {}}, "Labels": {"org.opencontainers.image.version": "1.2"}}"#,
        )
        .tags();
        let expected = [
            ("oci.label.org.opencontainers.image.version", "1.2"),
            ("oci.ports", "53/udp 80/tcp"),
            ("oci.user", "1000:1000"),
            ("oci.volumes", "/data"),
            ("version", "1.2"),
        ];
        let found: Vec<_> = tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }
}
