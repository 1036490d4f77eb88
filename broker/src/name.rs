//! Names of topics, groups and producers. A value of these types is valid: its text was checked when it was made.

use std::borrow::Borrow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// The longest name, in bytes: Kafka's limit, which keeps `name-partition` a valid file name.
pub const NAME_BYTES_MAX: usize = 249;

/// Whether `name` is 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`.
pub fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A name outside Kafka's rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {name:?} is not allowed: use 1 to 249 of the characters a-z A-Z 0-9 . _ - \
     (and not \".\" or \"..\")"
)]
pub struct InvalidName {
    /// "topic", "group", …
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
            /// Checks the name.
            ///
            /// # Errors
            /// [`InvalidName`] for a name that is not 1 to 249 of
            /// `a-z A-Z 0-9 . _ -`, or is `.` or `..`.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                if is_valid(name) {
                    Ok(Self(name.into()))
                } else {
                    Err(InvalidName { what: $what, name: shortened(name) })
                }
            }

            /// The name as text.
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
/// The longest id of a group, in bytes: what a string of Kafka's protocol holds.
pub const GROUP_ID_BYTES_MAX: usize = 32_767;

/// The id of a consumer group, any text but an empty one; the group of a pipeline has the pipeline's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(Arc<str>);

/// An id that no group can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGroupId {
    /// It has no characters.
    #[error("the id of a group is empty: name the group, with up to {GROUP_ID_BYTES_MAX} bytes of any text")]
    Empty,
    /// It is too long.
    #[error("the id of a group has {bytes} bytes, and {GROUP_ID_BYTES_MAX} are allowed: choose a shorter one")]
    TooLong {
        /// Its length in UTF-8.
        bytes: usize,
    },
}

impl GroupId {
    /// Checks the id.
    ///
    /// # Errors
    /// [`InvalidGroupId`] for an empty id, or one of more than [`GROUP_ID_BYTES_MAX`] bytes.
    pub fn new(id: &str) -> Result<Self, InvalidGroupId> {
        match id.len() {
            0 => Err(InvalidGroupId::Empty),
            1..=GROUP_ID_BYTES_MAX => Ok(Self(id.into())),
            bytes => Err(InvalidGroupId::TooLong { bytes }),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes the id as one line of bounded length: control characters are escaped, and a long id is cut.
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

/// A partition's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// From 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Names an idempotent producer. The broker hands each out once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerId(i64);

impl ProducerId {
    /// `None` for a negative number: Kafka's -1 means that there is no producer.
    pub fn new(id: i64) -> Option<Self> {
        (id >= 0).then_some(Self(id))
    }

    /// The id as record batches hold it.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who sends: an id, and how often its sequences began anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerIdentity {
    /// The producer.
    pub id: ProducerId,
    /// From 0.
    pub epoch: i16,
}

/// What an error shows of a name that may be megabytes long.
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
        // Whatever it is, an error that shows it is one line.
        let shown = GroupId::new(&format!("a\u{1b}[31m\n{}", "x".repeat(1_000))).unwrap().to_string();
        assert!(shown.starts_with("a\\u{1b}[31m\\n") && shown.len() < 400, "{shown}");
    }
}
