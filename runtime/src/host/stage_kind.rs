//! The kinds of stages. This file must not know how a module's kind is found out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of stage that a module is, which is the interface of `stage.wit` that it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageKind {
    /// Keeps or drops records.
    Filter,
    /// Turns each record into any number of records.
    Map,
    /// Folds records by key.
    Aggregate,
}

impl StageKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Map, Self::Aggregate];

    /// Returns the kind's name in pipeline files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Map => "map",
            Self::Aggregate => "aggregate",
        }
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
