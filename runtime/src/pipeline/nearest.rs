//! Suggestions ("did you mean"): finds the valid word that is nearest to a wrong one.

/// Maximum length of words to compare, in characters. Longer words are unlikely to be typing mistakes of each other,
/// and the cost of a comparison is the product of both lengths.
const WORD_CHARS_MAX: usize = 64;

/// Returns `; did you mean X?` for the candidate nearest to `word`, or an empty string if none is near.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|candidate| format!("; did you mean `{candidate}`?")).unwrap_or_default()
}

/// Returns the nearest candidate whose distance from `word` is at most a third of its letters; the first if there are
/// several. Differences in case, and between `_` and `-`, are ignored.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = plain(word)?;
    let mut best = None;
    for candidate in candidates {
        let Some(letters) = plain(candidate) else { continue };
        let allowed = (letters.len().max(word.len()) / 3).max(1);
        if letters.len().abs_diff(word.len()) > allowed {
            continue;
        }
        let distance = distance(&word, &letters);
        let nothing_alike = distance == letters.len().max(word.len());
        if distance <= allowed && !nothing_alike && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn plain(word: &str) -> Option<Vec<char>> {
    let letters: Vec<char> = word
        .chars()
        .take(WORD_CHARS_MAX + 1)
        .map(|letter| if letter == '_' { '-' } else { letter.to_ascii_lowercase() })
        .collect();
    (letters.len() <= WORD_CHARS_MAX).then_some(letters)
}

/// Returns the number of letters to insert, delete, replace or swap with a neighbour (optimal string alignment).
fn distance(from: &[char], to: &[char]) -> usize {
    let mut before = vec![0; to.len() + 1];
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (row, letter) in from.iter().enumerate() {
        let mut here = vec![row + 1; to.len() + 1];
        for (column, other) in to.iter().enumerate() {
            let replaced = above[column] + usize::from(letter != other);
            let mut least = replaced.min(above[column + 1] + 1).min(here[column] + 1);
            if row > 0 && column > 0 && letter == &to[column - 1] && &from[row - 1] == other {
                least = least.min(before[column - 1] + 1);
            }
            here[column + 1] = least;
        }
        before = std::mem::replace(&mut above, here);
    }
    above[to.len()]
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
        let letters = |word: &str| word.chars().collect::<Vec<_>>();
        assert_eq!(distance(&letters("form"), &letters("from")), 1);
        assert_eq!(distance(&letters("kitten"), &letters("sitting")), 3);
        assert_eq!(distance(&letters(""), &letters("abc")), 3);
    }
}
