//! A reference to a module, as pipeline files write it. This file must not know which modules there are.

use std::fmt;

use millstream_broker::name;
use serde::{Deserialize, Serialize};

use super::mistake::shortened;

/// The tag of a module reference without a tag.
pub const DEFAULT_TAG: &str = "latest";

/// A reference to a module in a pipeline file: `name`, `name:tag`, or a path that begins with `./`, `../` or `/`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleRef(String);

impl ModuleRef {
    /// Parses a reference.
    ///
    /// # Errors
    /// A message that says what is wrong, if the text has none of the three forms.
    pub fn new(text: &str) -> Result<Self, String> {
        let reference = Self(text.to_owned());
        if let Some(path) = reference.path() {
            if text.chars().any(char::is_control) || path.ends_with('/') {
                return Err(format!("{text:?} is not the path of a module"));
            }
            return Ok(reference);
        }
        if text.contains('/') || text.ends_with(".wasm") {
            return Err(format!("{text:?} is not a module name; a path begins with ./, ../ or /"));
        }
        if !name::is_valid(reference.name()) || !name::is_valid(reference.tag()) {
            return Err(format!(
                "{:?} is not a module: write name, name:tag, or a path that begins with ./, ../ or /",
                shortened(text)
            ));
        }
        Ok(reference)
    }

    /// Returns the path, if the module is named by one.
    pub fn path(&self) -> Option<&str> {
        let text = self.0.as_str();
        ["./", "../", "/"].iter().any(|start| text.starts_with(start)).then_some(text)
    }

    /// Returns the module's name without its tag; for a path, the file name without its extension.
    pub fn name(&self) -> &str {
        match self.path() {
            Some(path) => {
                let file = path.rsplit('/').next().unwrap_or(path);
                file.rsplit_once('.').map_or(file, |(stem, _)| stem)
            }
            None => self.0.split_once(':').map_or(self.0.as_str(), |(name, _)| name),
        }
    }

    /// Returns the tag, which is [`DEFAULT_TAG`] if none is written. It has no meaning for a path.
    pub fn tag(&self) -> &str {
        match self.path() {
            Some(_) => DEFAULT_TAG,
            None => self.0.split_once(':').map_or(DEFAULT_TAG, |(_, tag)| tag),
        }
    }

    /// Returns the reference as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModuleRef {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<ModuleRef> for String {
    fn from(reference: ModuleRef) -> Self {
        reference.0
    }
}
