//! Query parameters: what a client asked for, read strictly.
//!
//! A parameter that is not known is passed over, as the grid's proxy does. One that is known and makes
//! no sense is refused, by its name.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, RawQuery};
use axum::http::request::Parts;

use super::Refusal;
use crate::index::Page;

/// Rows of a page, if not asked otherwise.
pub(super) const PAGE_SIZE: usize = 50;
/// Most rows of a page.
pub(super) const PAGE_SIZE_MAX: usize = 10_000;
/// Longest query that is read.
const QUERY_SIZE_MAX: usize = 16 << 10;

/// The parameters of a request. One that is given several times is a list.
#[derive(Debug, Default)]
pub(super) struct Params(HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let RawQuery(query) =
            RawQuery::from_request_parts(parts, state).await.unwrap_or_else(|never| match never {});
        Self::parse(&query.unwrap_or_default())
    }
}

impl Params {
    pub(super) fn parse(query: &str) -> Result<Self, Refusal> {
        if query.len() > QUERY_SIZE_MAX {
            return Err(Refusal::Bad(format!("the query is longer than {QUERY_SIZE_MAX} bytes")));
        }
        let mut params = HashMap::<String, String>::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if value.is_empty() {
                continue;
            }
            params
                .entry(name.into_owned())
                .and_modify(|list| {
                    list.push(',');
                    list.push_str(&value);
                })
                .or_insert_with(|| value.into_owned());
        }
        Ok(Self(params))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.text(name).map(|text| number(name, text)).transpose()
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.text(name) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(text) => Err(Refusal::Bad(format!("{name} is neither true nor false: {text:?}"))),
        }
    }

    /// A list with commas.
    pub(super) fn texts(&self, name: &str) -> Option<Vec<&str>> {
        let list = self.text(name)?;
        Some(list.split(',').map(str::trim).filter(|text| !text.is_empty()).collect())
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Option<Vec<u64>>, Refusal> {
        let Some(texts) = self.texts(name) else { return Ok(None) };
        texts.into_iter().map(|text| number(name, text)).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn page(&self) -> Result<Page, Refusal> {
        // Clients ask for as many as they counted, even if that is none.
        let size = at_most(self.number("size")?.filter(|size| *size > 0), PAGE_SIZE);
        let number = at_most(self.number("page")?, 1).max(1);
        if size > PAGE_SIZE_MAX {
            return Err(Refusal::Bad(format!("size {size} is more than {PAGE_SIZE_MAX}")));
        }
        Ok(Page { number, size })
    }

    /// Whether `sort_order` asks for the largest first.
    pub(super) fn descending(&self) -> Result<bool, Refusal> {
        match self.text("sort_order").map(str::to_ascii_lowercase).as_deref() {
            None | Some("asc") => Ok(false),
            Some("desc") => Ok(true),
            Some(text) => Err(Refusal::Bad(format!("sort_order {text:?} is not asc or desc"))),
        }
    }
}

fn at_most(number: Option<u64>, default: usize) -> usize {
    number.map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX))
}

fn number(name: &str, text: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| Refusal::Bad(format!("{name} is not a number: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_with_commas_or_one_by_one() {
        let params =
            Params::parse("farm_ids=1,2&farm_ids=3&city=&state=Created%2CDeleted").unwrap();
        assert_eq!(params.numbers("farm_ids").unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(params.text("city"), None);
        assert_eq!(params.texts("state"), Some(vec!["Created", "Deleted"]));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let params = Params::parse("size=10001&ipv4=maybe&node_id=-1&sort_order=up").unwrap();
        let Err(Refusal::Bad(text)) = params.number("node_id") else { panic!("accepted") };
        assert_eq!(text, "node_id is not a number: \"-1\"");
        assert!(params.page().is_err());
        assert!(params.flag("ipv4").is_err());
        assert!(params.descending().is_err());
        assert!(Params::parse(&"a".repeat(QUERY_SIZE_MAX + 1)).is_err());
    }
}
