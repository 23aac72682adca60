//! How long it takes to believe a deployment: `cargo run --release -p hostd-grid --example verify`.
//!
//! Prints the median of many runs for a small deployment and one of all types, in both schemes: reading,
//! rules, hash and signatures, and of these the hash alone.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hostd_grid::challenge::Form;
use hostd_grid::deployment::Keys;
use hostd_grid::signature::AccountKey;
use hostd_grid::{SignedDeployment, TwinId};
use serde_json::Value;

const RUNS: usize = 1000;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/vectors/zos.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let keys = keys(&vectors).ok_or("no keys among the vectors")?;
    println!("{:24} {:>8} {:>10} {:>10} {:>10}", "", "bytes", "all µs", "verify µs", "hash µs");
    for name in ["single-zmount", "full-ed25519", "full-sr25519", "multi-signature"] {
        let cases = vectors["cases"].as_array().ok_or("no cases")?;
        let case = cases.iter().find(|case| case["name"] == name).ok_or("no such case")?;
        let json = case["deployment"].to_string().into_bytes();
        let signed = SignedDeployment::read(json.as_slice())?;
        let all = median(|| {
            let signed = SignedDeployment::read(json.as_slice());
            black_box(signed.map(|signed| signed.verify(&keys).is_ok()).is_ok());
        });
        let verify = median(|| {
            black_box(signed.verify_signatures(&keys).is_ok());
        });
        let hash = median(|| {
            black_box(signed.deployment().hash(Form::Current).is_ok());
        });
        assert!(signed.verify(&keys).is_ok(), "{name} is not accepted");
        let size = json.len();
        println!("{name:24} {size:8} {:10.1} {:10.1} {:10.1}", us(all), us(verify), us(hash));
    }
    Ok(())
}

fn keys(vectors: &Value) -> Option<Keys> {
    let key = |key: &Value| {
        let digits = key["Pub"].as_str()?;
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some((TwinId(key["Twin"].as_u64()?.try_into().ok()?), AccountKey(bytes)))
    };
    vectors["keys"].as_array()?.iter().map(key).collect()
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let begin = Instant::now();
            run();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times.get(RUNS / 2).copied().unwrap_or_default()
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
