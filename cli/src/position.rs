//! Start positions in a partition, as `--from` and `--to` accept them.

use millstream_client::Position;

use crate::timestamp;

/// Parses `earliest`, `latest`, an offset, a time, or `@` followed by a time as a number.
pub(crate) fn parse(text: &str) -> Result<Position, String> {
    match text {
        "earliest" => return Ok(Position::Earliest),
        "latest" => return Ok(Position::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse() {
        return Ok(Position::Offset(offset));
    }
    let time = match text.strip_prefix('@') {
        Some(number) => timestamp::parse(number),
        None => timestamp::parse_date(text),
    };
    time.map(Position::TimestampMs).ok_or_else(|| {
        "use earliest, latest, an offset, a time such as 2024-05-01T12:00:00Z or \"2024-05-01 12:00\" \
         (UTC if no zone is given), or @ and the seconds or milliseconds since 1970"
            .to_owned()
    })
}

/// Formats a position so that [`parse`] accepts it.
pub(crate) fn shown(position: Position) -> String {
    match position {
        Position::Earliest => "earliest".into(),
        Position::Latest => "latest".into(),
        Position::Offset(offset) => offset.to_string(),
        Position::TimestampMs(ms) => timestamp::format(ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_times_are_told_apart() {
        assert_eq!(parse("earliest"), Ok(Position::Earliest));
        assert_eq!(parse("latest"), Ok(Position::Latest));
        assert_eq!(parse("1714564800"), Ok(Position::Offset(1_714_564_800)));
        assert_eq!(parse("@1714564800"), Ok(Position::TimestampMs(1_714_564_800_000)));
        assert_eq!(parse("2024-05-01 12:00"), Ok(Position::TimestampMs(1_714_564_800_000)));
        for text in ["", "-1", "begin", "20x", "@", "@soon"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for text in ["earliest", "latest", "42", "2024-05-01T12:00:00.000Z"] {
            assert_eq!(parse(text).map(shown).as_deref(), Ok(text));
        }
    }
}
