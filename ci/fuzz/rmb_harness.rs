//! What a fuzzer does with an envelope from a relay, and with a token that somebody shows to one.
//!
//! Shared by the fuzz targets and by `hostd/rmb/tests/fuzz_corpus.rs`, which feeds the committed
//! corpus through it in every test run.

use std::sync::{Arc, OnceLock};

use hostd_rmb::envelope::limits::ENVELOPE_SIZE_MAX;
use hostd_rmb::envelope::{Address, Envelope};
use hostd_rmb::identity::Identity;
use hostd_rmb::jwt::Unverified;
use hostd_rmb::seal::Desk;
use hostd_rmb::signature::{Scheme, Version};
use hostd_rmb::twins::{Twin, TwinId};

/// Something to open envelopes with, and the twins that may have sent them.
struct World {
    desks: [Desk; 2],
    twins: [Twin; 2],
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let versions = [Version::V1, Version::V2];
        let desks = versions.map(|version| {
            let identity = Identity::from_seed(Scheme::Ed25519, &[7; 32]).expect("a good seed");
            let address = Address { twin: 7, connection: None };
            Desk::new(Arc::new(identity), address, Some(version))
        });
        let twins = versions.map(|version| {
            let identity = Identity::from_seed(Scheme::Sr25519, &[8; 32]).expect("a good seed");
            let key = identity.encryption_key(version).to_bytes();
            let id = TwinId::new(8).expect("not 0");
            Twin::from_chain(id, identity.account(), None, Some(&key))
        });
        World { desks, twins }
    })
}

/// A frame from a relay.
pub(crate) fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::parse(bytes.to_vec().into()) else { return };
    // What was read can be written, and says the same.
    let written = envelope.to_bytes().expect("what was read is within the limits");
    assert!(written.len() <= ENVELOPE_SIZE_MAX);
    let again = Envelope::parse(written).expect("what we write can be read");
    assert_eq!(again, envelope);
    assert_eq!(again.challenge_v1(), envelope.challenge_v1());
    assert_eq!(again.challenge_v2(), envelope.challenge_v2());
    let _ = (envelope.is_expired(1_700_000_000), envelope.has_tag("fail-fast"));
    let world = world();
    for (desk, twin) in world.desks.iter().zip(&world.twins) {
        // Nobody has the sender's key.
        assert!(desk.open(&envelope, twin).is_err());
    }
}

/// What stands behind the question mark of a relay's address.
pub(crate) fn jwt(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(token) = Unverified::parse(text) else { return };
    let [twin, _] = &world().twins;
    assert!(token.verify(twin.account, 1_700_000_000).is_err());
}
