//! Quotes of what users sent, short enough for an error text.

use crate::limits::EXCERPT_SIZE_MAX;

/// `text`, or its beginning and an ellipsis.
pub(crate) fn excerpt(text: &str) -> String {
    if text.len() <= EXCERPT_SIZE_MAX {
        return text.to_owned();
    }
    let end = (0..=EXCERPT_SIZE_MAX).rev().find(|end| text.is_char_boundary(*end));
    format!("{}…", text.get(..end.unwrap_or(0)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_stays() {
        assert_eq!(excerpt("disk1"), "disk1");
        assert_eq!(excerpt(&"a".repeat(EXCERPT_SIZE_MAX)), "a".repeat(EXCERPT_SIZE_MAX));
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        let text = format!("{}äb", "a".repeat(EXCERPT_SIZE_MAX - 1));
        assert_eq!(excerpt(&text), format!("{}…", "a".repeat(EXCERPT_SIZE_MAX - 1)));
    }
}
