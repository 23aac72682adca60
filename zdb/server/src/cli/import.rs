//! `zdb import`: takes over what the existing server wrote.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use zdb_engine::{Name, import};

use super::folders::{Folders, parse_name};

/// Take over namespaces that the existing 0-db (version 2) wrote
///
/// Every record whose checksum is right is taken, with its time and history; torn and damaged ones are
/// counted. The original folders are only read.
#[derive(Args)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    folders: Folders,
    /// The existing server's data folder
    #[arg(long, value_name = "DIR")]
    from_data: PathBuf,
    /// The existing server's index folder
    #[arg(long, value_name = "DIR")]
    from_index: PathBuf,
    /// Namespaces to take; all if none is named
    #[arg(value_parser = parse_name)]
    names: Vec<Name>,
}

/// Imports one namespace after the other.
pub(crate) fn run(arguments: &ImportArguments) -> anyhow::Result<()> {
    let opened = arguments.folders.open()?;
    let (data, index) = (&arguments.from_data, &arguments.from_index);
    let mut names = arguments.names.clone();
    if names.is_empty() {
        names = import::find(&opened.engine, data, index)
            .with_context(|| data.display().to_string())?;
        anyhow::ensure!(
            !names.is_empty(),
            "no namespace of the existing server in {}",
            data.display()
        );
    }
    for name in names {
        let (namespace, report) = import::import(&opened.engine, data, index, &name)
            .with_context(|| format!("namespace {name}"))?;
        let count = namespace.len();
        namespace.close().with_context(|| format!("namespace {name}"))?;
        println!(
            "{name}: {count} entries of {} records, {} damaged, {} bytes of torn ends",
            report.record_count, report.damaged_count, report.torn_size
        );
    }
    Ok(())
}
