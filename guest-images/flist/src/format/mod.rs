//! Image files: the current `.fl` and the legacy `.flist`.
//!
//! Both readers take hostile files and make a [`Tree`](crate::tree::Tree); only `.fl` is written.

use std::collections::BTreeMap;

use flist_view::block::BlockCipher;

use crate::store::url::StoreUrl;
use crate::tree::Tree;

/// An image as its file describes it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The tree, with the blocks of each file.
    pub tree: Tree,
    /// How its blocks are hashed and encrypted; follows from the format's generation.
    pub cipher: BlockCipher,
    /// Where its blocks are said to be; several routes may cover one block.
    pub routes: Vec<Route>,
    /// `tag` rows of a current image, metadata of a legacy one.
    pub tags: BTreeMap<String, String>,
}

/// Blocks whose id begins with a byte in `start..=end` are at `url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// First byte of the range.
    pub start: u8,
    /// Last byte of the range.
    pub end: u8,
    /// The store.
    pub url: StoreUrl,
}
