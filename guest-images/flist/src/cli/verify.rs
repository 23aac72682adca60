//! `flist verify`: are all blocks of an image to be had, and right?

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use flist::format::Image;
use flist::verify::{VerifyReport, verify};

use super::stores::SourceArguments;
use super::terminal::{Terminal, print};

/// Fetch and check every block of an image
///
/// Exits with 1 if a block is missing or bad. With --json, prints one object: `block_count`
/// (distinct blocks), `good_count`, `good_bytes` (plaintext), and `problems`, each with `block`
/// (its id), `reason`, `files` (up to 16 paths that need it) and `file_count`.
#[derive(Args)]
pub(crate) struct VerifyArguments {
    /// The image, `.fl` or `.flist`
    image: PathBuf,
    #[command(flatten)]
    source: SourceArguments,
    /// Check the image's own file only, and fetch nothing
    #[arg(long)]
    metadata_only: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let progress = Terminal::new()?;
    let image = Image::open(&arguments.image)?;
    let name = arguments.image.display();
    if arguments.metadata_only {
        if arguments.json {
            println!("{}", serde_json::to_string_pretty(&VerifyReport::default())?);
        } else {
            println!("{name}: metadata of {} inodes is sound", image.tree.inodes().len());
        }
        return Ok(());
    }
    let fetcher = arguments.source.fetcher(&image, &arguments.image)?;
    let report = verify(&image, &fetcher, arguments.source.workers, &progress)?;
    progress.finish();
    if arguments.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&text(&report))?;
    }
    if !report.problems.is_empty() {
        bail!(
            "{name}: {} of {} blocks are missing or bad",
            report.problems.len(),
            report.block_count
        );
    }
    Ok(())
}

fn text(report: &VerifyReport) -> String {
    let mut lines = Vec::new();
    for problem in &report.problems {
        lines.push(format!("{}: {}", problem.block, problem.reason));
        lines.extend(problem.files.iter().map(|file| format!("    {file}")));
        let unnamed = problem.file_count.saturating_sub(problem.files.len() as u64);
        if unnamed > 0 {
            lines.push(format!("    and {unnamed} more"));
        }
    }
    let VerifyReport { good_count, block_count, good_bytes, .. } = report;
    lines.push(format!("{good_count} of {block_count} blocks are good ({good_bytes} bytes)\n"));
    lines.join("\n")
}
