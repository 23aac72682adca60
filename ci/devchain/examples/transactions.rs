//! How many transactions a chain takes: `transactions ADDRESS GENESIS`, of a new chain that runs.
//!
//! A few accounts of development chains each send transfers that were signed before, one after the other
//! over a connection of its own, as JSON-RPC by HTTP. Prints a line a figure, its name and its value with a
//! tab in between: how many were accepted a second, and how many got into blocks.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use devchain::genesis::{dev_account, dev_key};
use devchain::runtime::{Address, RuntimeCall};
use devchain::sign_call;
use serde_json::{Value, json};
use sp_core::H256;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Who sends. Each has money in block 0 and no transaction yet.
const SENDERS: [&str; 4] = ["Bob", "Charlie", "Dave", "Eve"];
/// Transactions of each.
const COUNT: u32 = 2000;
/// How long the chain may take for what it accepted.
const TIME_MAX: Duration = Duration::from_secs(120);

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(genesis)) = (arguments.next(), arguments.next()) else {
        return Err("usage: transactions ADDRESS GENESIS".into());
    };
    let (address, genesis) = (address.as_str(), hash(&genesis)?);
    let signed: Vec<Vec<String>> = SENDERS.iter().map(|name| transfers(name, genesis)).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let senders: Vec<_> =
            { signed.iter() }.map(|signed| scope.spawn(move || send(address, signed))).collect();
        senders.into_iter().try_for_each(|sender| match sender.join() {
            Ok(sent) => sent,
            Err(_) => Err("a sender panicked".into()),
        })
    })?;
    let accepted = begin.elapsed();
    let mut asking = Rpc::connect(address)?;
    while asking.call("author_pendingExtrinsics", &json!([]))? != json!([]) {
        if begin.elapsed() > TIME_MAX {
            return Err("not all transactions got into blocks".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let count = f64::from(COUNT) * 4.0;
    println!("transactions accepted a second\t{:.0}", count / accepted.as_secs_f64());
    println!("transactions in blocks a second\t{:.0}", count / begin.elapsed().as_secs_f64());
    Ok(())
}

/// A hash as `network.json` has it.
fn hash(text: &str) -> Result<H256, Failure> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let pair = digits.get(2 * at..2 * at + 2).ok_or("a hash has 64 digits")?;
        *byte = u8::from_str_radix(pair, 16)?;
    }
    Ok(H256(bytes))
}

/// Transfers of a sender, in hexadecimal.
fn transfers(name: &str, genesis: H256) -> Vec<String> {
    let key = dev_key(name);
    let signed = (0..COUNT).map(|nonce| {
        let dest = Address::Id(dev_account("Ferdie"));
        let call = pallet_balances::Call::transfer_keep_alive { dest, value: 1 };
        let bytes = sign_call(RuntimeCall::Balances(call), &key, nonce, genesis);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{digits}")
    });
    signed.collect()
}

fn send(address: &str, signed: &[String]) -> Result<(), Failure> {
    let mut rpc = Rpc::connect(address)?;
    for transaction in signed {
        rpc.call("author_submitExtrinsic", &json!([transaction]))?;
    }
    Ok(())
}

/// One connection, kept alive.
struct Rpc {
    address: String,
    stream: BufReader<TcpStream>,
}

impl Rpc {
    fn connect(address: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIME_MAX))?;
        Ok(Self { address: address.to_owned(), stream: BufReader::new(stream) })
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value, Failure> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let body = body.to_string();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut size, mut line) = (0, String::new());
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    size = value.trim().parse()?;
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut answer = vec![0; size];
        self.stream.read_exact(&mut answer)?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        match answer.get("error") {
            Some(error) => Err(error.to_string().into()),
            None => Ok(answer["result"].take()),
        }
    }
}
