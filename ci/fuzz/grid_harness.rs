//! What a fuzzer does with a deployment: it is read, judged, hashed, verified, written and read again.
//!
//! Shared by the fuzz target and by `hostd/grid/tests/fuzz_corpus.rs`, which feeds the committed corpus
//! through it in every test run.

use hostd_grid::challenge::Form;
use hostd_grid::deployment::Keys;
use hostd_grid::signature::AccountKey;
use hostd_grid::{SignedDeployment, TwinId, VerifiedDeployment};

/// Bytes of the longest text that a node answers with.
const TEXT_SIZE_MAX: usize = 2048;

/// Whatever is sent, an answer comes out, and what is accepted means the same when it is written again.
pub(crate) fn deployment(bytes: &[u8]) {
    let signed = match SignedDeployment::read(bytes) {
        Ok(signed) => signed,
        Err(error) => return is_short(&error.to_string()),
    };
    if let Err(error) = signed.validate() {
        is_short(&error.to_string());
    }
    let key = AccountKey([7; 32]);
    let keys: Keys = signed.signers().into_iter().take(64).map(|twin| (twin, key)).collect();
    if let Err(error) = signed.verify_signatures(&keys) {
        is_short(&error.to_string());
    }
    let _ = signed.check_sender(TwinId(1));
    for form in signed.deployment().forms() {
        let Ok(hash) = signed.deployment().hash(*form) else { continue };
        match signed.clone().recheck(hash) {
            Ok(verified) => goes_round(&verified),
            Err(error) => is_short(&error.to_string()),
        }
    }
}

fn goes_round(verified: &VerifiedDeployment) {
    let deployment = verified.deployment();
    let _ = deployment.capacity();
    let json = serde_json::to_vec(deployment).expect("a deployment is JSON");
    let again = SignedDeployment::read(json).expect("what was written is read");
    let challenge = |form: Form| deployment.challenge(form);
    for form in [Form::Current, Form::Omitting] {
        assert_eq!(again.deployment().challenge(form), challenge(form));
    }
    let again = again.recheck(verified.hash()).expect("what was accepted is accepted again");
    assert_eq!(again.deployment(), deployment);
    // It follows nothing, being of the same version; but that is said, too.
    let error = deployment.changes_to(again.deployment()).expect_err("no version follows itself");
    is_short(&error.to_wire());
}

fn is_short(text: &str) {
    assert!(text.len() <= TEXT_SIZE_MAX, "{} bytes of error", text.len());
}
