//! The token that opens a connection to a relay.
//!
//! It has the shape of a JSON web token and stands, as it is, behind the question mark of the relay's
//! address. Its header claims `RS512`, which is not true and always the same; the signature is the
//! twin's, of 65 bytes, over the text in front of it (`reference: tfchain-rmb 3.4`).
//!
//! A token says nothing about the relay that it is for, so whoever runs a relay could use it at
//! another one, while it lasts. Ours last a minute, are made for each connection, and name their
//! relay in `aud`, which relays that know no better ignore.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use crate::identity::{AccountId, Identity};
use crate::signature::{self, SIGNATURE_SIZE, SignatureError, Version};
use crate::twins::TwinId;

/// How long a token of ours lasts, in seconds.
pub const LIFETIME: u64 = 60;
/// Most bytes of a token.
pub const TOKEN_SIZE_MAX: usize = 4096;
/// How far the clock of who made a token may be ahead, in seconds.
const AHEAD_MAX: u64 = 600;
/// The header of every token.
const HEADER: &str = r#"{"alg":"RS512"}"#;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Which twin it is.
    pub sub: u32,
    /// Which of its sessions; the nameless one if there is none.
    #[serde(default)]
    pub sid: Option<String>,
    /// When it was made, in seconds since 1970.
    pub iat: u64,
    /// The first second in which it does not count any more.
    pub exp: u64,
    /// The relay that it is for, by host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
}

/// Why a token opens nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum TokenError {
    /// Longer than any.
    #[error("a token has at most {TOKEN_SIZE_MAX} bytes, this one {0}")]
    Size(usize),
    /// Not three parts with dots between them.
    #[error("a token has three parts with dots between them")]
    Parts,
    /// A part that is not base64.
    #[error("the token's {0} is not base64url without padding")]
    Base64(&'static str),
    /// A part that is not the JSON that it should be.
    #[error("the token's {part}: {reason}")]
    Json {
        /// Which.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The twin that is nobody.
    #[error("the token is of twin 0")]
    NoTwin,
    /// Its time is over, or has not come.
    #[error("the token is from {iat} to {exp}, and it is {now}")]
    Time {
        /// When it was made.
        iat: u64,
        /// When it ends.
        exp: u64,
        /// What our clock says.
        now: u64,
    },
    /// Not signed by the twin.
    #[error("{0}")]
    Signature(#[from] SignatureError),
}

/// A token that was read, and not verified yet.
#[derive(Debug)]
pub struct Unverified<'a> {
    claims: Claims,
    twin: TwinId,
    signed: &'a str,
    signature: Vec<u8>,
}

/// Makes a token.
pub fn issue(identity: &Identity, claims: &Claims) -> String {
    let claims = serde_json::to_vec(claims).expect("claims are JSON");
    let signed = format!("{}.{}", BASE64.encode(HEADER), BASE64.encode(claims));
    let signature = identity.sign(Version::V1, signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(signature))
}

impl<'a> Unverified<'a> {
    /// Reads a token, so that one knows whom to ask for.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_SIZE_MAX {
            return Err(TokenError::Size(token.len()));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Parts)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Parts)?;
        if claims.contains('.') {
            return Err(TokenError::Parts);
        }
        // What the header claims about the signature is not true of any token; it must be JSON.
        let _: serde::de::IgnoredAny = json("header", header)?;
        let claims: Claims = json("claims", claims)?;
        let signature = decode("signature", signature)?;
        if signature.len() != SIGNATURE_SIZE {
            return Err(SignatureError::Size(signature.len()).into());
        }
        let twin = TwinId::new(claims.sub).ok_or(TokenError::NoTwin)?;
        Ok(Self { claims, twin, signed, signature })
    }

    /// Which twin says that it made this.
    pub fn twin(&self) -> TwinId {
        self.twin
    }

    /// What the token says, if that account made it and it counts now.
    pub fn verify(self, account: AccountId, now: u64) -> Result<Claims, TokenError> {
        signature::verify(account, Version::V1, self.signed.as_bytes(), &self.signature)?;
        let Claims { iat, exp, .. } = self.claims;
        if exp <= now || iat > now.saturating_add(AHEAD_MAX) {
            return Err(TokenError::Time { iat, exp, now });
        }
        Ok(self.claims)
    }
}

fn json<T: serde::de::DeserializeOwned>(part: &'static str, text: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(part, text)?)
        .map_err(|error| TokenError::Json { part, reason: error.to_string() })
}

fn decode(part: &'static str, text: &str) -> Result<Vec<u8>, TokenError> {
    BASE64.decode(text).map_err(|_| TokenError::Base64(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Scheme;

    const NOW: u64 = 1_000_000;

    fn claims() -> Claims {
        Claims { sub: 7, sid: Some("a".into()), iat: NOW, exp: NOW + LIFETIME, aud: None }
    }

    fn identity() -> Identity {
        Identity::from_seed(Scheme::Ed25519, &[7; 32]).unwrap()
    }

    fn checked(token: &str, now: u64) -> Result<Claims, TokenError> {
        Unverified::parse(token)?.verify(identity().account(), now)
    }

    #[test]
    fn a_token_counts_for_its_time() {
        let token = issue(&identity(), &claims());
        assert_eq!(checked(&token, NOW), Ok(claims()));
        assert_eq!(checked(&token, NOW + LIFETIME - 1), Ok(claims()));
        let late = checked(&token, NOW + LIFETIME);
        assert!(matches!(late, Err(TokenError::Time { .. })));
        assert_eq!(checked(&token, NOW - AHEAD_MAX), Ok(claims()));
        let early = checked(&token, NOW - AHEAD_MAX - 1);
        assert!(matches!(early, Err(TokenError::Time { .. })));
    }

    #[test]
    fn a_token_of_somebody_else_is_none() {
        let other = Identity::from_seed(Scheme::Ed25519, &[8; 32]).unwrap();
        let wrong = SignatureError::Wrong(identity().account());
        assert_eq!(checked(&issue(&other, &claims()), NOW), Err(wrong.into()));
        // Nor is one whose claims were exchanged.
        let ours = issue(&identity(), &claims());
        let theirs = issue(&identity(), &Claims { sub: 8, ..claims() });
        let (header, _) = theirs.rsplit_once('.').unwrap();
        let (_, signature) = ours.rsplit_once('.').unwrap();
        let mixed = format!("{header}.{signature}");
        assert_eq!(checked(&mixed, NOW), Err(wrong.into()));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(checked("", NOW), Err(TokenError::Parts));
        assert_eq!(checked("a.b", NOW), Err(TokenError::Parts));
        assert_eq!(checked("a.b.c.d", NOW), Err(TokenError::Parts));
        assert_eq!(checked("?.b.c", NOW), Err(TokenError::Base64("header")));
        let long = "a".repeat(TOKEN_SIZE_MAX + 1);
        assert_eq!(checked(&long, NOW), Err(TokenError::Size(TOKEN_SIZE_MAX + 1)));
        let of = |header: &str, claims: &str, signature: &[u8]| {
            let [header, claims] = [header, claims].map(|part| BASE64.encode(part));
            checked(&format!("{header}.{claims}.{}", BASE64.encode(signature)), NOW)
        };
        let json = |result| matches!(result, Err(TokenError::Json { .. }));
        assert!(json(of("{", "{}", &[0; 65])));
        assert!(json(of("{}", "{}", &[0; 65])));
        assert!(json(of("{}", r#"{"sub":-1,"iat":1,"exp":1}"#, &[0; 65])));
        let nobody = of("{}", r#"{"sub":0,"iat":1,"exp":1}"#, &[0; 65]);
        assert_eq!(nobody, Err(TokenError::NoTwin));
        let short = of("{}", r#"{"sub":1,"iat":1,"exp":1}"#, &[0; 64]);
        assert_eq!(short, Err(SignatureError::Size(64).into()));
        let strange = of("{}", r#"{"sub":1,"iat":1,"exp":1}"#, &[0; 65]);
        assert_eq!(strange, Err(SignatureError::Kind(0).into()));
    }

    #[test]
    fn go_peers_say_more_in_the_header() {
        let claims = BASE64.encode(serde_json::to_vec(&claims()).unwrap());
        let header = BASE64.encode(r#"{"alg":"RS512","typ":"JWT"}"#);
        let signed = format!("{header}.{claims}");
        let signature = identity().sign(Version::V1, signed.as_bytes());
        let token = format!("{signed}.{}", BASE64.encode(signature));
        assert!(checked(&token, NOW).is_ok());
    }
}
