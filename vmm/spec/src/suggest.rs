//! "Did you mean": the known word that is nearest to a mistyped one.

/// Longest word that is looked at: nobody mistypes a page.
const WORD_SIZE_MAX: usize = 64;

/// The one of `known` that `word` was probably meant to be: at most a third of its letters differ.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > WORD_SIZE_MAX {
        return None;
    }
    let scored = known.into_iter().map(|candidate| (distance(word, candidate), candidate));
    let (distance, candidate) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= word.len().max(candidate.len()) / 3).then_some(candidate)
}

/// Insertions, deletions and replacements that make `a` into `b` (Levenshtein), by bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_edits() {
        for (a, b, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("serial", "seriel", 1),
            ("path", "pth", 1),
            ("a", "b", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_near_words_are_suggested() {
        let known = ["path", "readonly", "serial"];
        assert_eq!(nearest("seriel", known), Some("serial"));
        assert_eq!(nearest("read-only", known), Some("readonly"));
        assert_eq!(nearest("size", known), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), known), None);
    }
}
