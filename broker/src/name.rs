//! Names of topics, groups and producers. Values of these types are always valid, because they are checked when
//! created.

use std::borrow::Borrow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// Maximum length of a name in bytes. This is Kafka's limit, which keeps `name-partition` a valid file name.
pub const NAME_BYTES_MAX: usize = 249;

/// Returns whether `name` consists of 1 to 249 of the characters `a-z A-Z 0-9 . _ -`, and is neither `.` nor `..`.
pub fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A name that does not follow Kafka's rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {name:?} is not allowed: use 1 to 249 of the characters a-z A-Z 0-9 . _ - \
     (and not \".\" or \"..\")"
)]
pub struct InvalidName {
    /// The kind of name: "topic", "group", …
    what: &'static str,
    /// The name as given.
    name: String,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Creates a name after checking it.
            ///
            /// # Errors
            /// [`InvalidName`] if the name does not consist of 1 to 249 of the characters `a-z A-Z 0-9 . _ -`, or is
            /// `.` or `..`.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                if is_valid(name) {
                    Ok(Self(name.into()))
                } else {
                    Err(InvalidName { what: $what, name: shortened(name) })
                }
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a topic.
    TopicName,
    "topic"
);
/// Maximum length of a group's ID in bytes: that of a string in Kafka's protocol.
pub const GROUP_ID_BYTES_MAX: usize = 32_767;

/// The ID of a consumer group: any text that is not empty. The group of a pipeline has the pipeline's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(Arc<str>);

/// An invalid group ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGroupId {
    /// The ID is empty.
    #[error("the id of a group is empty: use 1 to {GROUP_ID_BYTES_MAX} bytes of any text")]
    Empty,
    /// The ID is too long.
    #[error("the id of a group has {bytes} bytes, and {GROUP_ID_BYTES_MAX} are allowed: choose a shorter one")]
    TooLong {
        /// Its length in UTF-8, in bytes.
        bytes: usize,
    },
}

impl GroupId {
    /// Creates an ID after checking it.
    ///
    /// # Errors
    /// [`InvalidGroupId`] if the ID is empty or longer than [`GROUP_ID_BYTES_MAX`] bytes.
    pub fn new(id: &str) -> Result<Self, InvalidGroupId> {
        match id.len() {
            0 => Err(InvalidGroupId::Empty),
            1..=GROUP_ID_BYTES_MAX => Ok(Self(id.into())),
            bytes => Err(InvalidGroupId::TooLong { bytes }),
        }
    }

    /// Returns the ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes the ID as one line of limited length: control characters are escaped, and a long ID is truncated.
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in shortened(&self.0).chars() {
            if c.is_control() { c.escape_default().fmt(f)? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", shortened(&self.0))
    }
}

impl Borrow<str> for GroupId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A partition, identified by topic and number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// Number of the partition, from 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Identifies an idempotent producer. The broker hands out each ID only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerId(i64);

impl ProducerId {
    /// Returns `None` for a negative number. In Kafka, -1 means that there is no producer.
    pub fn new(id: i64) -> Option<Self> {
        (id >= 0).then_some(Self(id))
    }

    /// Returns the ID as stored in record batches.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A producer's ID, and how often its sequence numbers have started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerIdentity {
    /// The producer.
    pub id: ProducerId,
    /// The epoch, from 0.
    pub epoch: i16,
}

/// Returns a shortened copy of a name for errors, because it may be megabytes long.
pub(crate) fn shortened(name: &str) -> String {
    const SHOWN_CHARS: usize = 300;
    if name.chars().count() <= SHOWN_CHARS {
        return name.to_owned();
    }
    let mut short: String = name.chars().take(SHOWN_CHARS).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rule() {
        for good in ["a", "a.b_c-D9", &"x".repeat(249)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ü", &"x".repeat(250), "a\0"] {
            let error = TopicName::new(bad).unwrap_err();
            assert!(error.to_string().contains("topic"), "{error}");
        }
    }

    #[test]
    fn any_text_but_an_empty_one_is_the_id_of_a_group() {
        for good in ["a", "my group", "ü/\0", ".", &"x".repeat(GROUP_ID_BYTES_MAX)] {
            assert_eq!(GroupId::new(good).unwrap().as_str(), good);
        }
        assert_eq!(GroupId::new(""), Err(InvalidGroupId::Empty));
        let long = GroupId::new(&"x".repeat(GROUP_ID_BYTES_MAX + 1)).unwrap_err();
        assert!(long.to_string().contains("32768 bytes"), "{long}");
        // An error that shows an ID must be a single line.
        let shown = GroupId::new(&format!("a\u{1b}[31m\n{}", "x".repeat(1_000))).unwrap().to_string();
        assert!(shown.starts_with("a\\u{1b}[31m\\n") && shown.len() < 400, "{shown}");
    }
}
