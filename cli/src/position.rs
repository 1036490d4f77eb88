//! Where to begin in a partition, as `--from` and `--to` take it.

use std::fmt;
use std::str::FromStr;

use crate::timestamp;

/// A place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// The first record that is kept.
    Earliest,
    /// After the last record.
    Latest,
    /// This very offset.
    Offset(u64),
    /// The first record whose timestamp is this, in milliseconds since the epoch, or later.
    Time(i64),
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        let time = match text.strip_prefix('@') {
            Some(number) => timestamp::parse(number),
            None => timestamp::parse_date(text),
        };
        time.map(Self::Time).ok_or_else(|| {
            "use earliest, latest, an offset, a time such as 2024-05-01T12:00:00Z or \"2024-05-01 12:00\" \
             (UTC where no zone is given), or @ and the seconds or milliseconds since 1970"
                .to_owned()
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::Time(ms) => f.write_str(&timestamp::format(*ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_times_are_told_apart() {
        let parse = |text: &str| text.parse::<Position>().unwrap();
        assert_eq!(parse("earliest"), Position::Earliest);
        assert_eq!(parse("latest"), Position::Latest);
        assert_eq!(parse("1714564800"), Position::Offset(1_714_564_800));
        assert_eq!(parse("@1714564800"), Position::Time(1_714_564_800_000));
        assert_eq!(parse("2024-05-01 12:00"), Position::Time(1_714_564_800_000));
        for text in ["", "-1", "begin", "2024", "20x"] {
            assert!(text == "2024" || text.parse::<Position>().is_err(), "{text}");
        }
    }
}
