//! What the grid's proxy knows: all nodes and all contracts, which the chain can only tell one by one.
//!
//! It is asked to find things, and never believed about them: a node is asked itself before anything is
//! deployed on it, and a contract is looked up on the chain before it is changed.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// Bytes of an answer.
const ANSWER_SIZE_MAX: u64 = 32 << 20;
/// Entries of one page.
const PAGE_SIZE: usize = 100;
/// Pages that are read.
const PAGE_COUNT_MAX: usize = 100;

/// The proxy, at the first address that answers.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    urls: Vec<String>,
}

/// What a node has, as the proxy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Amounts {
    #[serde(default)]
    pub(crate) cru: u64,
    #[serde(default)]
    pub(crate) mru: u64,
    #[serde(default)]
    pub(crate) sru: u64,
    #[serde(default)]
    pub(crate) hru: u64,
}

/// A node, as the proxy says.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ProxyNode {
    #[serde(rename = "nodeId")]
    pub(crate) id: u32,
    #[serde(rename = "farmId")]
    pub(crate) farm_id: u32,
    #[serde(default, rename = "farmName")]
    pub(crate) farm_name: String,
    #[serde(default)]
    pub(crate) country: String,
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) total_resources: Amounts,
    #[serde(default)]
    pub(crate) used_resources: Amounts,
}

impl ProxyNode {
    /// What nobody has taken.
    pub(crate) fn free(&self) -> Amounts {
        let (total, used) = (self.total_resources, self.used_resources);
        Amounts {
            cru: total.cru,
            mru: total.mru.saturating_sub(used.mru),
            sru: total.sru.saturating_sub(used.sru),
            hru: total.hru.saturating_sub(used.hru),
        }
    }
}

/// A contract about a deployment, as the proxy says.
#[derive(Debug, Clone, Deserialize)]
struct ProxyContract {
    details: ProxyDetails,
}

#[derive(Debug, Clone, Deserialize)]
struct ProxyDetails {
    #[serde(rename = "nodeId")]
    node: u32,
}

impl Proxy {
    pub(crate) fn new(urls: &[String]) -> Self {
        Self { urls: urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect() }
    }

    /// Nodes that `query` asks for, `status=up&free_mru=1024`, sorted by their numbers.
    pub(crate) async fn nodes(&self, query: &str) -> anyhow::Result<Vec<ProxyNode>> {
        self.pages("nodes", query).await
    }

    /// The nodes on which a twin has contracts that are not over.
    pub(crate) async fn nodes_of_twin(&self, twin: u32) -> anyhow::Result<Vec<u32>> {
        let query = format!("twin_id={twin}&type=node&state=Created,GracePeriod");
        let contracts: Vec<ProxyContract> = self.pages("contracts", &query).await?;
        let mut nodes: Vec<_> =
            contracts.into_iter().map(|contract| contract.details.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(nodes)
    }

    /// All pages of a list.
    async fn pages<T: DeserializeOwned + Send + 'static>(
        &self,
        list: &str,
        query: &str,
    ) -> anyhow::Result<Vec<T>> {
        let mut all = Vec::new();
        for page in 1..=PAGE_COUNT_MAX {
            let path = format!("{list}?{query}&size={PAGE_SIZE}&page={page}");
            let found: Vec<T> = self.ask(path).await?;
            let count = found.len();
            all.extend(found);
            if count < PAGE_SIZE {
                break;
            }
        }
        Ok(all)
    }

    async fn ask<T: DeserializeOwned + Send + 'static>(&self, path: String) -> anyhow::Result<T> {
        if self.urls.is_empty() {
            bail!("network.json names no proxy (gridproxy_urls): name the node with --node");
        }
        let urls = self.urls.clone();
        let asking = move || {
            let mut reasons = Vec::new();
            for url in urls {
                match fetch(&format!("{url}/{path}")) {
                    Ok(bytes) => return serde_json::from_slice(&bytes).with_context(|| url),
                    Err(reason) => reasons.push(format!("{url}: {reason}")),
                }
            }
            bail!("the grid's proxy does not answer: {}", reasons.join("; "))
        };
        tokio::task::spawn_blocking(asking).await?
    }
}

fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER_TIME_MAX));
    let agent: ureq::Agent = config.max_redirects(3).build().into();
    let mut response = agent.get(url).call().map_err(|error| error.to_string())?;
    let limited = response.body_mut().with_config().limit(ANSWER_SIZE_MAX);
    limited.read_to_vec().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_proxy_says_is_read() {
        let text = r#"{"id": "0000000003", "nodeId": 3, "farmId": 1, "status": "up", "x": null,
            "total_resources": {"cru": 8, "mru": 100, "sru": 50, "hru": 0},
            "used_resources": {"cru": 1, "mru": 30, "sru": 60}}"#;
        let node: ProxyNode = serde_json::from_str(text).unwrap();
        assert_eq!(node.free(), Amounts { cru: 8, mru: 70, sru: 0, hru: 0 });
        assert_eq!((node.id, &*node.status), (3, "up"));
    }

    #[tokio::test]
    async fn without_a_proxy_the_remedy_is_said() {
        let error = Proxy::new(&[]).nodes("status=up").await.unwrap_err().to_string();
        assert!(error.ends_with("name the node with --node"), "{error}");
    }
}
