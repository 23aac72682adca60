//! What can go wrong, told apart by what a caller should do about it.
//!
//! | error | it means | so |
//! |---|---|---|
//! | [`ChainError::Unreachable`] | nobody could be asked, nothing is known | change nothing, ask again later |
//! | [`ChainError::Refused`] | the chain executed the call, and it failed | the request is wrong, or too late |
//! | [`ChainError::NotAccepted`] | the call never got into a block, and never will | money, mostly |
//! | [`ChainError::Unconfirmed`] | it was sent, and what came of it is not known | look before sending it again |
//! | [`ChainError::Incompatible`] | this chain is not what we know | a newer release of ours |
//!
//! What the chain does not have is no error: questions answer `None`.

use std::fmt;

use subxt::config::substrate::H256;
use subxt::error::DispatchError;

use crate::types::BlockNumber;

/// Longest text of an endpoint that is kept in an error, in characters.
const REASON_SIZE_MAX: usize = 300;

/// Why there is no answer from the chain, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Nobody could be asked. Says nothing about the chain's state.
    #[error("the chain can't be reached: {0}")]
    Unreachable(EndpointFaults),
    /// The chain executed a call, which failed, and says why.
    #[error("{call} is refused: {refusal}")]
    Refused {
        /// The call, as `Pallet.call`.
        call: String,
        /// Why.
        refusal: Refusal,
    },
    /// A transaction was refused before execution, and will never be executed.
    #[error("{call} is not accepted: {reason}")]
    NotAccepted {
        /// The call, as `Pallet.call`.
        call: String,
        /// In the endpoint's words.
        reason: String,
    },
    /// A transaction was sent, and what came of it is not known; it can still be executed for a while.
    #[error("{call} was sent, and is in no block that could be seen: {reason}")]
    Unconfirmed {
        /// The call, as `Pallet.call`.
        call: String,
        /// The transaction's hash.
        transaction: [u8; 32],
        /// What kept us from knowing.
        reason: String,
    },
    /// The chain lacks something that we need, or has it in a form that we don't know.
    #[error("this chain is not compatible: {0}")]
    Incompatible(String),
    /// An endpoint's address that can't be one, or none at all.
    #[error("{0}")]
    Config(String),
    /// A service beside the chain failed.
    #[error(transparent)]
    Activation(#[from] crate::activation::ActivationError),
}

impl ChainError {
    /// Whether nothing is known because nobody could be asked.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// The refusal, if the chain executed the call and refused it.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// What was wrong with each endpoint when it was last tried.
#[derive(Debug, Default)]
pub struct EndpointFaults(pub Vec<(String, EndpointFault)>);

impl EndpointFaults {
    /// Remembers what is wrong with `endpoint`; the last word counts.
    pub(crate) fn add(&mut self, endpoint: &str, fault: EndpointFault) {
        match self.0.iter_mut().find(|(known, _)| known == endpoint) {
            Some((_, known)) => *known = fault,
            None => self.0.push((endpoint.to_owned(), fault)),
        }
    }
}

impl fmt::Display for EndpointFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (endpoint, fault)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {fault}")?;
        }
        Ok(())
    }
}

/// Why an endpoint is of no use at the moment.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EndpointFault {
    /// There is no connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// It did not answer in time.
    #[error("no answer within {0} seconds")]
    Timeout(f32),
    /// It is another chain's.
    #[error("its chain begins with {}, and ours with {}", Hash(found), Hash(expected))]
    Genesis {
        /// Ours.
        expected: [u8; 32],
        /// Its.
        found: [u8; 32],
    },
    /// It does not have what was seen before.
    #[error("it is at block {height}, and block {seen} was seen already")]
    Behind {
        /// Its newest block.
        height: BlockNumber,
        /// The newest block of all endpoints.
        seen: BlockNumber,
    },
    /// It says that it can't answer.
    #[error("it answers: {0}")]
    Answer(String),
}

/// A hash as people read it.
pub(crate) struct Hash<'a>(pub(crate) &'a [u8; 32]);

impl fmt::Display for Hash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", H256::from(*self.0))
    }
}

/// Why the chain refused a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The pallet that refused it; empty if it was the runtime itself.
    pub pallet: String,
    /// The error's name in that pallet.
    pub name: String,
}

impl Refusal {
    pub(crate) fn new(error: &DispatchError) -> Self {
        if let DispatchError::Module(module) = error
            && let Ok(details) = module.details()
        {
            let pallet = details.pallet.name().to_owned();
            return Self { pallet, name: details.variant.name.clone() };
        }
        Self { pallet: String::new(), name: shortened(&error.to_string()) }
    }

    /// Whether it is that error of that pallet.
    pub fn is(&self, pallet: &str, name: &str) -> bool {
        self.pallet == pallet && self.name == name
    }

    /// What the error means, in a sentence, if it is one that people meet.
    pub fn sentence(&self) -> Option<&'static str> {
        let (_, _, sentence) = SENTENCES.iter().find(|(pallet, name, _)| self.is(pallet, name))?;
        Some(sentence)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.pallet.is_empty() {
            write!(f, "{}.", self.pallet)?;
        }
        f.write_str(&self.name)?;
        match self.sentence() {
            Some(sentence) => write!(f, " ({sentence})"),
            None => Ok(()),
        }
    }
}

/// What an endpoint says, as far as it belongs into an error.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(REASON_SIZE_MAX).collect()
}

/// Errors that people meet, in sentences.
const SENTENCES: &[(&str, &str, &str)] = &[
    ("TfgridModule", "TwinWithPubkeyExists", "this account has a twin already"),
    ("TfgridModule", "TwinExists", "this account has a twin already"),
    ("TfgridModule", "TwinNotExists", "there is no such twin, or the account has none yet"),
    (
        "TfgridModule",
        "UserDidNotSignTermsAndConditions",
        "the account has to accept the terms and conditions first",
    ),
    ("TfgridModule", "FarmExists", "a farm of that name exists already"),
    ("TfgridModule", "FarmNotExists", "there is no such farm"),
    ("TfgridModule", "NodeNotExists", "there is no such node"),
    ("TfgridModule", "NodeWithTwinIdExists", "this twin is a node already"),
    ("TfgridModule", "NodeUpdateNotAuthorized", "only the node's own twin may update it"),
    ("TfgridModule", "InvalidRelay", "a relay is a host name, without a port"),
    ("TfgridModule", "InvalidHRUInput", "the chain does not believe the size of the hard disks"),
    ("TfgridModule", "InvalidSRUInput", "a node needs at least 100 GiB of solid-state disk"),
    ("TfgridModule", "InvalidCRUInput", "a node needs at least one processor"),
    ("TfgridModule", "InvalidMRUInput", "a node needs at least 2 GiB of memory"),
    (
        "TfgridModule",
        "InvalidTimestampHint",
        "the node's clock and the chain's differ by more than a minute",
    ),
    (
        "TfgridModule",
        "UnauthorizedToChangePowerTarget",
        "only the farmer may say whether a node should run",
    ),
    ("TfgridModule", "NodeHasActiveContracts", "there are contracts on this node"),
    ("TfgridModule", "IpExists", "the farm has that address already"),
    ("SmartContractModule", "TwinNotExists", "the account has no twin"),
    ("SmartContractModule", "NodeNotExists", "there is no such node"),
    ("SmartContractModule", "FarmNotExists", "the node's farm does not exist"),
    (
        "SmartContractModule",
        "FarmHasNotEnoughPublicIPs",
        "the farm has fewer public addresses than are asked for",
    ),
    (
        "SmartContractModule",
        "FarmHasNotEnoughPublicIPsFree",
        "the farm has fewer free public addresses than are asked for",
    ),
    ("SmartContractModule", "ContractNotExists", "there is no such contract"),
    (
        "SmartContractModule",
        "TwinNotAuthorizedToUpdateContract",
        "only the contract's owner may update it",
    ),
    (
        "SmartContractModule",
        "TwinNotAuthorizedToCancelContract",
        "only the contract's owner may cancel it",
    ),
    (
        "SmartContractModule",
        "NodeNotAuthorizedToDeployContract",
        "somebody else rents this node, or it has to be rented first",
    ),
    ("SmartContractModule", "NodeNotAuthorizedToComputeReport", "this contract is on another node"),
    (
        "SmartContractModule",
        "ContractIsNotUnique",
        "the same deployment has a contract on this node already",
    ),
    ("SmartContractModule", "NameExists", "somebody has that name already"),
    (
        "SmartContractModule",
        "NameNotValid",
        "a name has lower-case letters, digits, hyphens and underscores",
    ),
    ("SmartContractModule", "NameContractNameTooShort", "a name has at least 3 characters"),
    ("SmartContractModule", "NameContractNameTooLong", "a name has at most 64 characters"),
    ("SmartContractModule", "NodeHasActiveContracts", "there are contracts on this node"),
    ("SmartContractModule", "NodeHasRentContract", "this node is rented already"),
    ("SmartContractModule", "NodeNotAvailableToDeploy", "the node is switched off, or about to be"),
    (
        "SmartContractModule",
        "CannotUpdateContractInGraceState",
        "the contract is not paid for at the moment",
    ),
    ("Balances", "InsufficientBalance", "the account has not enough money"),
    ("TFKVStore", "KeyIsTooLarge", "the key is too long"),
    ("TFKVStore", "ValueIsTooLarge", "the value is too long"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_error_and_explains_it() {
        let refusal =
            Refusal { pallet: "TfgridModule".to_owned(), name: "TwinWithPubkeyExists".to_owned() };
        let text = "TfgridModule.TwinWithPubkeyExists (this account has a twin already)";
        assert_eq!(refusal.to_string(), text);
        let unknown = Refusal { pallet: "Dao".to_owned(), name: "Odd".to_owned() };
        assert_eq!(unknown.to_string(), "Dao.Odd");
        let error = ChainError::Refused { call: "Dao.vote".to_owned(), refusal: unknown };
        assert_eq!(error.to_string(), "Dao.vote is refused: Dao.Odd");
    }

    #[test]
    fn the_last_word_about_each_endpoint_counts() {
        let mut faults = EndpointFaults::default();
        faults.add("ws://a", EndpointFault::Timeout(10.0));
        faults.add("ws://b", EndpointFault::Behind { height: 3, seen: 9 });
        faults.add("ws://a", EndpointFault::Connection("refused".to_owned()));
        assert_eq!(
            ChainError::Unreachable(faults).to_string(),
            "the chain can't be reached: ws://a: refused; \
             ws://b: it is at block 3, and block 9 was seen already"
        );
    }

    #[test]
    fn what_an_endpoint_says_is_cut_and_cleaned() {
        assert_eq!(shortened("a\u{1b}[0m\nb"), "a[0mb");
        assert_eq!(shortened(&"x".repeat(10_000)).len(), REASON_SIZE_MAX);
    }
}
