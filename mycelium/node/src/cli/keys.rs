//! `mycelium inspect` and `mycelium generate-keys`: keys and the addresses that follow from them.

use clap::Args;
use mycelium_node::config::Settings;
use mycelium_node::key_file;
use mycelium_wire::identity::PublicKey;

/// Show a public key and its address
#[derive(Args)]
pub(crate) struct InspectArguments {
    /// Print JSON: {"publicKey": …, "address": …}
    #[arg(long)]
    json: bool,
    /// A public key, 64 hexadecimal digits; without one, that of the key file
    key: Option<PublicKey>,
}

/// Make a new secret key
#[derive(Args)]
pub(crate) struct GenerateArguments {
    /// Replace a key that is there: the node gets another address
    #[arg(long)]
    force: bool,
    /// Print JSON: {"publicKey": …, "address": …}
    #[arg(long)]
    json: bool,
}

pub(crate) fn inspect(arguments: &InspectArguments, settings: &Settings) -> anyhow::Result<()> {
    let key = match arguments.key {
        Some(key) => key,
        None => {
            let path = settings.key_file.clone().map_or_else(key_file::default_path, Ok)?;
            key_file::read(&path)?.public()
        }
    };
    print(key, arguments.json)
}

pub(crate) fn generate(arguments: &GenerateArguments, settings: &Settings) -> anyhow::Result<()> {
    let path = settings.key_file.clone().map_or_else(key_file::default_path, Ok)?;
    let key = key_file::create(&path, arguments.force)?;
    print(key.public(), arguments.json)
}

fn print(key: PublicKey, json: bool) -> anyhow::Result<()> {
    let address = key.address();
    if json {
        let shown = serde_json::json!({ "publicKey": key.to_string(), "address": address });
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        println!("Public key: {key}");
        println!("Address: {address}");
    }
    Ok(())
}
