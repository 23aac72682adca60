//! `--store` of every subcommand.
//!
//! The values are plain text to clap, and parsed here: clap's own message about a bad value repeats
//! it, and a store's URL can hold a password.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::bail;
use clap::Args;
use flist::format::{Image, Route};
use flist::store::fetch::{Fetcher, RetryOptions};
use flist::store::route::{StoreOptions, Stores};
use flist::store::url::RouteSpec;

/// Parses the values of `--store`, `[xx-xx=]URL` each, in their order.
pub(crate) fn routes(specs: &[String]) -> anyhow::Result<Vec<Route>> {
    let parse = |text: &String| Ok(RouteSpec::parse(text).map(Route::from)?);
    specs.iter().map(parse).collect()
}

/// `--store` of the subcommands that read an image's blocks.
#[derive(Args)]
pub(crate) struct SourceArguments {
    /// Where the blocks are, instead of where the image says: dir://PATH, zdb://HOST:PORT/NAMESPACE,
    /// http[s]://HOST/PATH or s3://HOST:PORT/BUCKET; may be repeated, and take a range of blocks as
    /// in `00-7f=URL`
    #[arg(short, long = "store", value_name = "URL")]
    stores: Vec<String>,
    /// Worker threads; by default one for each core, at least two
    #[arg(long, value_name = "COUNT")]
    pub(crate) workers: Option<NonZeroUsize>,
}

impl SourceArguments {
    /// Fetches the blocks of `image`, which was read from `path`.
    pub(crate) fn fetcher(&self, image: &Image, path: &Path) -> anyhow::Result<Fetcher> {
        let routes =
            if self.stores.is_empty() { image.routes.clone() } else { routes(&self.stores)? };
        if routes.is_empty() {
            bail!("{}: names no store; name one with --store URL", path.display());
        }
        let stores = Stores::new(&routes, &StoreOptions::default());
        Ok(Fetcher::new(stores, image.cipher, RetryOptions::default()))
    }
}
