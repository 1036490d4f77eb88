//! Positions in partitions.

use millstream_api::v1;

/// A position in the partitions of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Position {
    /// The first record that is still stored.
    Earliest,
    /// After the last record.
    #[default]
    Latest,
    /// The record with this offset.
    Offset(u64),
    /// The first record whose timestamp is at or after this time, in ms since the epoch.
    TimestampMs(i64),
}

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        use v1::position::At;
        let at = match position {
            Position::Earliest => At::Earliest(true),
            Position::Latest => At::Latest(true),
            Position::Offset(offset) => At::Offset(offset),
            Position::TimestampMs(timestamp_ms) => At::TimestampMs(timestamp_ms),
        };
        Self { at: Some(at) }
    }
}

impl From<Position> for v1::reset_group_request::To {
    fn from(position: Position) -> Self {
        match position {
            Position::Earliest => Self::Earliest(true),
            Position::Latest => Self::Latest(true),
            Position::Offset(offset) => Self::Offset(offset),
            Position::TimestampMs(timestamp_ms) => Self::TimestampMs(timestamp_ms),
        }
    }
}
