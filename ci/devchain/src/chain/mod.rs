use std::{path::PathBuf, time::Duration};
/// How a chain is made and run.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    pub dir: Option<PathBuf>,
    pub block_time: Option<Duration>,
    pub billing_frequency: u64,
    pub grace_blocks: u64,
    pub relaxed_minimums: bool,
}
