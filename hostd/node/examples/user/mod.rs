//! People on a grid, for examples that need some: each has a twin, money, and contracts on a node.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hostd_chain::calls::NodeContractSpec;
use hostd_chain::config::Confirmation;
use hostd_chain::{Chain, ChainConfig, SigningChain};
use hostd_grid::challenge::Form;
use hostd_grid::deployment::{SignatureRequest, SignatureRequirement};
use hostd_grid::network::Network;
use hostd_grid::signature::Scheme;
use hostd_grid::workload::WorkloadResult;
use hostd_grid::{ContractId, Deployment, Name, TwinId, Workload, WorkloadData};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::{RelayAddress, TrustedRoots};
use hostd_rmb::signature::{Scheme as KeyScheme, Version};

/// Whatever goes wrong ends an example.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Contracts that are made by one call.
const BATCH_COUNT: usize = 50;

/// Somebody.
pub(crate) struct User {
    pub(crate) identity: Arc<Identity>,
    pub(crate) chain: SigningChain,
    pub(crate) twin: TwinId,
}

/// Reads a `network.json`.
pub(crate) fn network(path: &str) -> Result<Network, Failure> {
    Ok(Network::parse(&std::fs::read(path)?)?.network)
}

/// The relays of a network.
pub(crate) fn relays(network: &Network) -> Result<Vec<RelayAddress>, Failure> {
    network.relays_urls.iter().map(|url| Ok(url.parse()?)).collect()
}

/// The chain of a network.
pub(crate) fn chain(network: &Network) -> Result<Chain, Failure> {
    let config = ChainConfig {
        genesis: network.genesis_hash,
        confirmation: Confirmation::Finalized,
        retry_max: Duration::from_secs(20),
        ..ChainConfig::new(network.substrate_urls.clone(), TrustedRoots::new(None)?)
    };
    Ok(Chain::new(config)?)
}

impl User {
    /// The same one for the same number, from 1 on. Joins the grid, if that was not done before.
    pub(crate) async fn of(network: &Network, number: u8) -> Result<Self, Failure> {
        let identity = Arc::new(Identity::from_seed(KeyScheme::Ed25519, &[number; 32])?);
        let chain = chain(network)?.signed_by(Arc::clone(&identity));
        chain.ensure_account(&network.activation_urls).await?;
        let relays = relays(network)?;
        let hosts: Vec<_> = relays.iter().map(RelayAddress::host).collect();
        let key = identity.encryption_key(Version::V1).to_bytes();
        let twin = TwinId(chain.ensure_twin(Some(&hosts.join("_")), Some(&key)).await?);
        Ok(Self { identity, chain, twin })
    }

    /// Makes a contract for each of these, with a deployment of its own; their numbers and messages.
    pub(crate) async fn contracts(
        &self,
        node_id: u32,
        wanted: Vec<(String, WorkloadData)>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
        let mut deployments = Vec::new();
        for (name, data) in wanted {
            deployments.push(self.signed(&name, data)?);
        }
        let mut messages = Vec::new();
        for batch in deployments.chunks_mut(BATCH_COUNT) {
            let specs: Vec<_> = { batch.iter() }
                .map(|(_, hash)| NodeContractSpec {
                    node_id,
                    hash: *hash,
                    data: Vec::new(),
                    public_ips: 0,
                    solution_provider: None,
                })
                .collect();
            let ids = self.chain.create_node_contracts(&specs).await?;
            for ((deployment, _), id) in batch.iter_mut().zip(ids) {
                deployment.contract_id = ContractId(id);
                messages.push((id, serde_json::to_vec(deployment)?));
            }
        }
        Ok(messages)
    }

    /// A deployment of one workload, and the hash that its contract is to have.
    fn signed(&self, name: &str, data: WorkloadData) -> Result<(Deployment, [u8; 32]), Failure> {
        let workload = Workload {
            version: 0,
            name: Name::new(name),
            data,
            metadata: String::new(),
            description: String::new(),
            result: WorkloadResult::default(),
        };
        let twin_id = self.twin;
        let mut deployment = Deployment {
            twin_id,
            signature_requirement: SignatureRequirement {
                requests: vec![SignatureRequest { twin_id, required: true, weight: 1 }],
                weight_required: 1,
                ..SignatureRequirement::default()
            },
            workloads: vec![workload],
            ..Deployment::default()
        };
        let signature = self.identity.sign_bare(&deployment.signing_message());
        deployment.add_signature(twin_id, Scheme::Ed25519, &signature);
        let hash = deployment.hash(Form::Current)?.to_string().into_bytes();
        Ok((deployment, hash.try_into().map_err(|_| "a hash has 32 digits")?))
    }
}
