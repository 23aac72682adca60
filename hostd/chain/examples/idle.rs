//! What following a chain and signing for it costs: `idle CHAIN ACTIVATION`, both URLs.
//!
//! Does what a node does all day: an account, a twin, blocks as they come, and now and then a signed call.
//! Prints a line a figure, its name and its value with a tab in between: how long a call takes until it is
//! final, and what this process, which does nothing else, holds of memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostd_chain::config::Confirmation;
use hostd_chain::{Chain, ChainConfig};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Signed calls.
const CALL_COUNT: usize = 100;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(chain), Some(activation)) = (arguments.next(), arguments.next()) else {
        return Err("usage: idle CHAIN ACTIVATION".into());
    };
    let config = ChainConfig {
        confirmation: Confirmation::Finalized,
        ..ChainConfig::new(vec![chain], TrustedRoots::new(None)?)
    };
    let chain = Chain::connect(config).await?;
    let identity = Arc::new(Identity::from_seed(Scheme::Ed25519, &[7; 32])?);
    let signing = chain.signed_by(identity);
    signing.ensure_account(&[activation]).await?;
    signing.ensure_twin(Some("127.0.0.1"), None).await?;
    let mut follow = chain.follow(chain.finalized().await?);
    let following = tokio::spawn(async move {
        loop {
            follow.next().await;
        }
    });
    let mut times = Vec::with_capacity(CALL_COUNT);
    for number in 0..CALL_COUNT {
        let begin = Instant::now();
        signing.kv_set(b"key", number.to_string().as_bytes()).await?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(CALL_COUNT * percent / 100).copied().unwrap_or_default();
    for percent in [50, 99] {
        let time = at(percent).as_secs_f64() * 1e3;
        println!("a signed call, finalized, p{percent}: ms\t{time:.2}");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("hostd's share of subxt: MiB\t{:.1}", resident_mib()?);
    following.abort();
    Ok(())
}

/// What this process holds.
fn resident_mib() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u32 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(f64::from(kib) / 1024.0)
}
