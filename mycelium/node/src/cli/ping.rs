//! `mycelium ping`: how long packets take to another node and back.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use mycelium_wire::identity::PublicKey;
use serde_json::{Value, json};

use crate::cli::http::Client;
use crate::cli::node::Output;

/// Measure how long packets take to another node and back
///
/// The node that runs here asks, so no privilege is needed, and it works without a device here. Nodes
/// that it has a session with answer by themselves; others, existing releases too, if they have a device.
#[derive(Args)]
pub(crate) struct PingArguments {
    /// Packets to send; 0: until Ctrl-C
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 5)]
    count: u32,
    /// Seconds between them
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Seconds to wait for each answer
    #[arg(short = 'W', long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    timeout: f64,
    /// Bytes of payload, from 8 to 1352
    #[arg(short, long, value_name = "BYTES", default_value_t = 56)]
    size: usize,
    #[command(flatten)]
    output: Output,
    /// Address or public key of the node
    destination: String,
}

/// Nobody answered, which was said.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub(crate) struct NoAnswer;

/// Answers so far.
#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    round_trips_us: Vec<u64>,
}

/// Round trips that are kept for the last line.
const KEPT_COUNT_MAX: usize = 1 << 20;

pub(crate) fn run(arguments: &PingArguments, client: &Client) -> anyhow::Result<()> {
    let address = address(&arguments.destination)?;
    let mut tally = Tally::default();
    let wait = Duration::from_secs_f64(arguments.timeout);
    let timeout_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let body = json!({ "address": address, "size": arguments.size, "timeoutMs": timeout_ms });
    loop {
        let answer = client.ask("POST", "/admin/probe", Some(&body), wait)?.check()?;
        let result: Value = serde_json::from_slice(&answer.body)?;
        tally.add(&result);
        if !arguments.output.json {
            println!("{}", line(address, arguments.size, &result));
        }
        if tally.sent == arguments.count {
            break;
        }
        let passed = result["roundTripUs"].as_u64().map_or(wait, Duration::from_micros);
        let interval = Duration::from_secs_f64(arguments.interval);
        std::thread::sleep(interval.saturating_sub(passed));
    }
    if arguments.output.json {
        println!("{}", serde_json::to_string_pretty(&tally.json(address))?);
    } else {
        println!("{}", tally.line());
    }
    if tally.round_trips_us.is_empty() { Err(NoAnswer.into()) } else { Ok(()) }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0.01 to 60 seconds".to_owned()),
    }
}

fn address(destination: &str) -> anyhow::Result<Ipv6Addr> {
    if let Ok(address) = destination.parse::<Ipv6Addr>() {
        return Ok(address);
    }
    match destination.parse::<PublicKey>() {
        Ok(key) => Ok(key.address()),
        Err(_) => bail!("{destination:?} is neither an address nor a public key"),
    }
}

fn line(address: Ipv6Addr, size: usize, result: &Value) -> String {
    match result["outcome"].as_str() {
        Some("answered") => {
            let time = milliseconds(result["roundTripUs"].as_u64().unwrap_or(0));
            let way = match result["hopLimit"].as_u64() {
                Some(hop_limit) => format!("hop limit {hop_limit}"),
                None => "in a session".to_owned(),
            };
            format!("{address}: {size} bytes, {time}, {way}")
        }
        Some("refused") => {
            let text = |name: &str| result[name].as_str().unwrap_or("-").to_owned();
            format!("{address}: {} (says {})", text("reason"), text("by"))
        }
        _ => format!("{address}: no answer"),
    }
}

fn milliseconds(microseconds: u64) -> String {
    format!("{:.3} ms", microseconds as f64 / 1000.0)
}

impl Tally {
    fn add(&mut self, result: &Value) {
        self.sent += 1;
        if result["outcome"] == "answered" && self.round_trips_us.len() < KEPT_COUNT_MAX {
            self.round_trips_us.extend(result["roundTripUs"].as_u64());
        }
    }

    /// Smallest, mean and largest.
    fn spread(&self) -> Option<(u64, u64, u64)> {
        let all = &self.round_trips_us;
        let mean = all.iter().sum::<u64>().checked_div(all.len() as u64)?;
        Some((*all.iter().min()?, mean, *all.iter().max()?))
    }

    fn json(&self, address: Ipv6Addr) -> Value {
        let spread = self.spread();
        json!({
            "address": address,
            "sent": self.sent,
            "answered": self.round_trips_us.len(),
            "roundTripsUs": self.round_trips_us,
            "minUs": spread.map(|(min, _, _)| min),
            "meanUs": spread.map(|(_, mean, _)| mean),
            "maxUs": spread.map(|(_, _, max)| max),
        })
    }

    fn line(&self) -> String {
        let (sent, answered) = (self.sent, self.round_trips_us.len());
        match self.spread() {
            None => format!("{sent} sent, none answered"),
            Some((min, mean, max)) => format!(
                "{sent} sent, {answered} answered, smallest {}, mean {}, largest {}",
                milliseconds(min),
                milliseconds(mean),
                milliseconds(max)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_and_silence_too() {
        let mut tally = Tally::default();
        assert_eq!(tally.line(), "0 sent, none answered");
        tally.add(&json!({ "outcome": "answered", "roundTripUs": 1000, "hopLimit": 63 }));
        tally.add(&json!({ "outcome": "silent" }));
        tally.add(&json!({ "outcome": "answered", "roundTripUs": 3000, "hopLimit": 63 }));
        let line = tally.line();
        assert!(line.contains("3 sent, 2 answered") && line.contains("mean 2.000 ms"), "{line}");
        let json = tally.json("400::1".parse().unwrap());
        assert_eq!((&json["maxUs"], &json["answered"]), (&json!(3000), &json!(2)));
    }

    #[test]
    fn a_node_is_named_by_address_or_key() {
        assert_eq!(address("400::1").unwrap(), "400::1".parse::<Ipv6Addr>().unwrap());
        let key = PublicKey::from_bytes([7; 32]);
        assert_eq!(address(&key.to_string()).unwrap(), key.address());
        assert!(address("host").is_err() && seconds("0").is_err() && seconds("0.2").is_ok());
    }
}
