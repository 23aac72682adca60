//! `--store` of every subcommand.
//!
//! The values are plain text to clap, and parsed here: clap's own message about a bad value repeats
//! it, and a store's URL can hold a password.

use flist::format::Route;
use flist::store::url::RouteSpec;

/// Parses the values of `--store`, `[xx-xx=]URL` each, in their order.
pub(crate) fn routes(specs: &[String]) -> anyhow::Result<Vec<Route>> {
    let parse = |text: &String| Ok(RouteSpec::parse(text).map(Route::from)?);
    specs.iter().map(parse).collect()
}
