//! Who we are: challenges (RFC 9110 §11.6.1), tokens, and where names and passwords come from.
//!
//! Passwords and tokens have no `Debug` and appear in no error.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::oci::reference::DEFAULT_HOST;

/// Largest Docker client configuration, in bytes.
const DOCKER_CONFIG_SIZE_MAX: u64 = 1 << 20;
/// The name under which Docker keeps the login of the default registry.
const DOCKER_DEFAULT_KEY_PREFIX: &str = "https://index.";

/// A name and a password.
#[derive(Clone)]
pub struct Login {
    user: String,
    password: String,
}

/// The value of an `Authorization` header.
#[derive(Clone)]
pub struct Authorization(String);

/// How a registry wants to be spoken to.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password.
    Basic,
    /// A token that `realm` gives for a query of `service` and `scope`.
    Bearer {
        /// The token service's URL.
        realm: String,
        /// What to ask it.
        query: Vec<(String, String)>,
    },
}

impl Login {
    /// A name and a password.
    #[must_use]
    pub const fn new(user: String, password: String) -> Self {
        Self { user, password }
    }

    /// The login that `docker login` left for `host` in its configuration file. None if the file or
    /// the entry is absent, or names a credential helper, which is a program that we don't run.
    #[must_use]
    pub fn from_docker_config(path: &Path, host: &str) -> Option<Self> {
        let file = std::fs::File::open(path).ok()?;
        let config: DockerConfig =
            serde_json::from_reader(file.take(DOCKER_CONFIG_SIZE_MAX)).ok()?;
        let default_key = format!("{DOCKER_DEFAULT_KEY_PREFIX}{DEFAULT_HOST}/v1/");
        let keys = [host.to_owned(), format!("https://{host}"), format!("https://{host}/v1/")];
        let default = (host == DEFAULT_HOST).then_some(default_key);
        let entry = keys.into_iter().chain(default).find_map(|key| config.auths.get(&key))?;
        if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
            return Some(Self::new(user.clone(), password.clone()));
        }
        let decoded = STANDARD.decode(entry.auth.as_ref()?).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Self::new(user.to_owned(), password.to_owned()))
    }

    /// The header of RFC 7617.
    #[must_use]
    pub fn basic(&self) -> Authorization {
        Authorization(format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.user, self.password))
        ))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

impl Authorization {
    /// The header's value.
    #[must_use]
    pub fn header(&self) -> &str {
        &self.0
    }

    /// A bearer token.
    #[must_use]
    pub fn bearer(token: &str) -> Self {
        Self(format!("Bearer {token}"))
    }

    /// The token in a token service's JSON answer, if there is one that can stand in a header.
    pub fn from_token_response(body: impl Read) -> Option<Self> {
        let answer: TokenResponse = serde_json::from_reader(body).ok()?;
        let token = answer.token.or(answer.access_token)?;
        let fits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self::bearer(&token))
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(..)")
    }
}

impl Challenge {
    /// Parses a `WWW-Authenticate` header; none if it asks for something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut query) = (None, Vec::new());
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                name @ ("service" | "scope") => query.push((name.to_owned(), value)),
                _ => {}
            }
        }
        Some(Self::Bearer { realm: realm?, query })
    }
}

/// `name="value", name=value`.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((name.trim().to_owned(), value.trim().to_owned()));
        text = rest.trim_start_matches([',', ' ']);
    }
    found
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let text = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = vec![pair("service", "r.example"), pair("scope", "repository:a/b:pull,push")];
        let realm = "https://auth.example/token".to_owned();
        assert_eq!(Challenge::parse(text), Some(Challenge::Bearer { realm, query }));
        assert_eq!(Challenge::parse("basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    #[test]
    fn logins_come_from_dockers_configuration() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = r#"{"auths": {"r.example": {"auth": "dTpwOnc="}, "s.example": {},
            "https://index.DEFAULT/v1/": {"username": "me", "password": "secret"}}}"#;
        let json = json.replace("DEFAULT", DEFAULT_HOST);
        std::fs::write(file.path(), json).unwrap();
        let login = |host| Login::from_docker_config(file.path(), host);
        assert_eq!(login("r.example").unwrap().basic().header(), "Basic dTpwOnc=");
        assert_eq!(format!("{:?}", login(DEFAULT_HOST).unwrap()), "Login(me)");
        assert!(login("s.example").is_none() && login("t.example").is_none());
    }

    #[test]
    fn secrets_are_not_shown() {
        let login = Login::new("me".into(), "secret".into());
        let shown = format!("{login:?} {:?}", login.basic());
        assert_eq!(shown, "Login(me) Authorization(..)");
    }
}
