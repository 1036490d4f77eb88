//! Suggestions ("did you mean"): finds the valid word that is nearest to a wrong one. This file must not know
//! what the words stand for.

use strsim::osa_distance;

/// Maximum length of words to compare, in characters. Longer words are unlikely to be typing mistakes of each other,
/// and the cost of a comparison is the product of both lengths.
const WORD_CHARS_MAX: usize = 64;

/// Returns `; did you mean X?` for the candidate nearest to `word`, or an empty string if none is near.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|candidate| format!("; did you mean `{candidate}`?")).unwrap_or_default()
}

/// Returns the nearest candidate whose distance from `word` is at most a third of its letters; the first if there are
/// several. Differences in case, and between `_` and `-`, are ignored. The distance is the number of letters to insert,
/// delete, replace or swap with a neighbour.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (word, word_chars) = plain(word)?;
    let mut best = None;
    for candidate in candidates {
        let Some((letters, chars)) = plain(candidate) else { continue };
        let longest = chars.max(word_chars);
        let allowed = (longest / 3).max(1);
        if chars.abs_diff(word_chars) > allowed {
            continue;
        }
        let distance = osa_distance(&word, &letters);
        let nothing_alike = distance == longest;
        if distance <= allowed && !nothing_alike && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Returns the word as it is compared, with its length in characters, or `None` if it is too long.
fn plain(word: &str) -> Option<(String, usize)> {
    let letter = |letter: char| if letter == '_' { '-' } else { letter.to_ascii_lowercase() };
    let letters: String = word.chars().take(WORD_CHARS_MAX + 1).map(letter).collect();
    let chars = letters.chars().count();
    (chars <= WORD_CHARS_MAX).then_some((letters, chars))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found() {
        let keys = ["pipeline", "from", "stages", "to", "dead-letters"];
        assert_eq!(nearest("form", keys), Some("from"));
        assert_eq!(nearest("Dead_Letters", keys), Some("dead-letters"));
        assert_eq!(nearest("stage", keys), Some("stages"));
        assert_eq!(nearest("pipline", keys), Some("pipeline"));
        assert_eq!(nearest("window", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), keys), None);
    }

    #[test]
    fn a_swap_is_one_step() {
        assert_eq!(osa_distance("form", "from"), 1);
        assert_eq!(osa_distance("kitten", "sitting"), 3);
        assert_eq!(osa_distance("", "abc"), 3);
    }
}
