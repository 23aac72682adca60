//! The way of a client: a deployment is built, signed, sent, and believed by a node.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use ed25519_dalek::{Signer, SigningKey};
use hostd_grid::challenge::Form;
use hostd_grid::deployment::{
    Keys, SignatureError, SignatureRequest, SignatureRequirement, VerifyError,
};
use hostd_grid::signature::{AccountKey, STYLE_POLKA_WALLET, Scheme, message};
use hostd_grid::workload::{Mycelium, NetworkLight, Workload, WorkloadResult, ZMount};
use hostd_grid::{ContractId, Deployment, Name, SignedDeployment, TwinId, WorkloadData};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};

const ED25519: TwinId = TwinId(7);
const SR25519: TwinId = TwinId(8);

struct Accounts {
    ed25519: SigningKey,
    sr25519: Keypair,
}

impl Accounts {
    fn new() -> Self {
        let mini = MiniSecretKey::from_bytes(&[8; 32]).unwrap();
        Self {
            ed25519: SigningKey::from_bytes(&[7; 32]),
            sr25519: mini.expand_to_keypair(ExpansionMode::Ed25519),
        }
    }

    fn keys(&self) -> Keys {
        Keys::from([
            (ED25519, AccountKey(self.ed25519.verifying_key().to_bytes())),
            (SR25519, AccountKey(self.sr25519.public.to_bytes())),
        ])
    }

    fn sign(&self, deployment: &mut Deployment, twin: TwinId, message: &[u8]) {
        let (scheme, bytes) = if twin == SR25519 {
            let signature = self.sr25519.sign_simple(b"substrate", message);
            (Scheme::Sr25519, signature.to_bytes())
        } else {
            (Scheme::Ed25519, self.ed25519.sign(message).to_bytes())
        };
        deployment.add_signature(twin, scheme, &bytes);
    }
}

fn workload(name: &str, data: WorkloadData) -> Workload {
    Workload {
        version: 0,
        name: Name::new(name),
        data,
        metadata: String::new(),
        description: String::new(),
        result: WorkloadResult::default(),
    }
}

fn deployment(owner: TwinId, style: &str) -> Deployment {
    let request = |twin_id| SignatureRequest { twin_id, required: false, weight: 1 };
    Deployment {
        twin_id: owner,
        contract_id: ContractId(42),
        metadata: r#"{"version":3,"type":"vm","name":"x"}"#.to_owned(),
        signature_requirement: SignatureRequirement {
            requests: vec![request(owner)],
            weight_required: 1,
            signature_style: style.to_owned(),
            ..SignatureRequirement::default()
        },
        workloads: vec![workload("disk", WorkloadData::ZMount(ZMount { size: 1 << 30 }))],
        ..Deployment::default()
    }
}

fn send(deployment: &Deployment) -> SignedDeployment {
    SignedDeployment::read(serde_json::to_vec(deployment).unwrap()).unwrap()
}

fn verify(deployment: &Deployment, keys: &Keys) -> Result<Form, VerifyError> {
    send(deployment).verify(keys).map(|verified| verified.form())
}

#[test]
fn what_is_signed_is_believed_in_both_schemes_and_styles() {
    let accounts = Accounts::new();
    for owner in [ED25519, SR25519] {
        for style in ["", STYLE_POLKA_WALLET] {
            let mut deployment = deployment(owner, style);
            let message = deployment.signing_message();
            accounts.sign(&mut deployment, owner, &message);
            let verified = send(&deployment).verify(&accounts.keys()).unwrap();
            assert_eq!(verified.deployment(), &deployment);
            assert_eq!(verified.hash(), deployment.hash(Form::Current).unwrap());
            assert_eq!(verified.check_new(), Ok(()));
            // Whatever is hashed can't be changed afterwards.
            deployment.description.push('!');
            let error = verify(&deployment, &accounts.keys()).unwrap_err();
            assert_eq!(error, SignatureError::Wrong.into());
        }
    }
}

#[test]
fn of_two_signatures_of_one_twin_the_first_counts() {
    let accounts = Accounts::new();
    let mut good = deployment(ED25519, "");
    let message = good.signing_message();
    accounts.sign(&mut good, ED25519, &message);
    let mut bad = deployment(ED25519, "");
    bad.add_signature(ED25519, Scheme::Ed25519, &[0; 64]);
    let [right, wrong] = [&good, &bad].map(|one| one.signature_requirement.signatures[0].clone());
    let with = |signatures: [_; 2]| {
        let mut both = deployment(ED25519, "");
        both.signature_requirement.signatures = signatures.to_vec();
        verify(&both, &accounts.keys())
    };
    assert_eq!(with([right.clone(), wrong.clone()]), Ok(Form::Current));
    assert_eq!(with([wrong, right]), Err(SignatureError::Wrong.into()));
}

#[test]
fn a_new_signature_takes_the_place_of_the_old_one() {
    let accounts = Accounts::new();
    let mut deployment = deployment(ED25519, "");
    let wrong = [0; 64];
    deployment.add_signature(ED25519, Scheme::Sr25519, &wrong);
    assert!(verify(&deployment, &accounts.keys()).is_err());
    let message = deployment.signing_message();
    accounts.sign(&mut deployment, ED25519, &message);
    assert_eq!(deployment.signature_requirement.signatures.len(), 1);
    assert_eq!(verify(&deployment, &accounts.keys()), Ok(Form::Current));
    // Of two that a twin sent, the first counts; those of others are ignored.
    deployment.add_signature(SR25519, Scheme::Sr25519, &wrong);
    assert_eq!(verify(&deployment, &accounts.keys()), Ok(Form::Current));
}

#[test]
fn a_light_network_may_be_signed_in_either_form_and_its_contract_must_agree() {
    let accounts = Accounts::new();
    let network = NetworkLight {
        subnet: hostd_grid::address::Maybe::<hostd_grid::address::Cidr>::parse("10.1.1.0/24")
            .unwrap(),
        mycelium: Mycelium {
            hex_key: hostd_grid::secret::SecretBytes::new([5; 32]),
            peers: Vec::new(),
        },
        ..NetworkLight::default()
    };
    let mut deployment = deployment(ED25519, "");
    deployment.workloads.push(workload("net", WorkloadData::NetworkLight(network)));
    let hash = |form| deployment.hash(form).unwrap();
    let (current, omitting) = (hash(Form::Current), hash(Form::Omitting));
    assert_ne!(current, omitting);
    for (form, own, other) in
        [(Form::Current, current, omitting), (Form::Omitting, omitting, current)]
    {
        let mut deployment = deployment.clone();
        accounts.sign(&mut deployment, ED25519, &message(&own, ""));
        let verified = send(&deployment).verify(&accounts.keys()).unwrap();
        assert_eq!(verified.form(), form);
        assert_eq!(verified.check_contract(&own.to_string(), ED25519), Ok(()));
        let error = verified.check_contract(&other.to_string(), ED25519).unwrap_err();
        assert_eq!(error.to_string(), "contract hash does not match deployment hash");
    }
}

#[test]
fn weights_do_not_wrap_round() {
    let accounts = Accounts::new();
    let mut deployment = deployment(ED25519, "");
    let requirement = &mut deployment.signature_requirement;
    requirement.requests[0].weight = u64::MAX;
    let request = SignatureRequest { twin_id: SR25519, required: true, weight: 5 };
    requirement.requests.push(request);
    requirement.weight_required = u64::MAX;
    let message = deployment.signing_message();
    accounts.sign(&mut deployment, ED25519, &message);
    accounts.sign(&mut deployment, SR25519, &message);
    assert_eq!(verify(&deployment, &accounts.keys()), Ok(Form::Current));
}

#[test]
fn an_update_is_no_first_version() {
    let accounts = Accounts::new();
    let mut deployment = deployment(SR25519, "");
    deployment.version = 1;
    let message = deployment.signing_message();
    accounts.sign(&mut deployment, SR25519, &message);
    let verified = send(&deployment).verify(&accounts.keys()).unwrap();
    let text = "expected version to be 0 on deployment creation: invalid version";
    assert_eq!(verified.check_new().unwrap_err().to_string(), text);
}
