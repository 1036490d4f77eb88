//! Parses YAML to a tree in which each key and value has its place. This is the only file that uses the YAML crate.
//!
//! It uses the crate's events rather than its tree. This way duplicate keys are reported as mistakes instead of the
//! last one winning, features that pipeline files do not need are refused, and the depth of the tree is limited before
//! it is built.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::mistake::{Mistake, shortened};
use super::place::Place;

/// Maximum depth of nesting. A pipeline file needs four levels.
const DEPTH_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar {
        text: String,
        /// Whether the scalar is written without quotes.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// A value for which a mistake was already reported.
    Refused,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) node: Node,
}

impl Node {
    /// Returns whether the value is written as `~` or `null`, or is missing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }
}

/// Returns the first document in `text`, or `None` if there is none or parsing cannot continue. Mistakes are added to
/// `mistakes`.
pub(super) fn load(text: &str, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut tree = Tree { root: None, open: Vec::new(), mistakes };
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, Span { start, .. }) = match event {
            Ok(event) => event,
            Err(error) => {
                let message = format!("not YAML: {}", shortened(error.info()));
                tree.mistakes.push(Mistake::new(place(*error.marker()), message));
                return None;
            }
        };
        let here = place(start);
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                tree.mistake(here, "a second YAML document begins here; a file must have only one pipeline");
                break;
            }
        }
        if !tree.take(event, here) {
            return None;
        }
    }
    tree.root
}

fn place(marker: Marker) -> Place {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Place { line: number(marker.line().max(1)), column: number(marker.col().saturating_add(1)) }
}

struct Tree<'a> {
    root: Option<Node>,
    open: Vec<Open>,
    mistakes: &'a mut Vec<Mistake>,
}

/// A list or mapping whose end has not been reached.
enum Open {
    List { place: Place, items: Vec<Node> },
    Map { place: Place, entries: Vec<Entry>, key: Option<Key>, seen: HashMap<String, Place> },
}

struct Key {
    /// `None` for a refused key, whose value is read and dropped.
    text: Option<String>,
    place: Place,
}

impl Tree<'_> {
    fn mistake(&mut self, place: Place, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(place, message));
    }

    /// Handles an event. Returns false if parsing cannot continue.
    fn take(&mut self, event: Event<'_>, here: Place) -> bool {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
            Event::Alias(_) => {
                self.mistake(here, "aliases (*name) are not supported in pipeline files; write the value out");
                self.add(Node { place: here, value: Value::Refused });
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_extras(anchor, tag.is_some(), here);
                let plain = style == ScalarStyle::Plain;
                self.add(Node { place: here, value: Value::Scalar { text: text.into_owned(), plain } });
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_extras(anchor, tag.is_some(), here);
                return self.begin(Open::List { place: here, items: Vec::new() }, here);
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_extras(anchor, tag.is_some(), here);
                let map = Open::Map { place: here, entries: Vec::new(), key: None, seen: HashMap::new() };
                return self.begin(map, here);
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { place, items }) => self.add(Node { place, value: Value::List(items) }),
                Some(Open::Map { place, entries, .. }) => self.add(Node { place, value: Value::Map(entries) }),
                None => {}
            },
        }
        true
    }

    fn refuse_extras(&mut self, anchor: usize, tagged: bool, here: Place) {
        if anchor != 0 {
            self.mistake(here, "anchors (&name) are not supported in pipeline files; write the value where it is used");
        }
        if tagged {
            self.mistake(here, "tags (!name) are not supported in pipeline files; remove it");
        }
    }

    fn begin(&mut self, open: Open, here: Place) -> bool {
        if self.open.len() == DEPTH_MAX {
            self.mistake(here, format!("nested more than {DEPTH_MAX} levels deep"));
            return false;
        }
        self.open.push(open);
        true
    }

    /// Adds a completed node at its position: as the root, a list item, a key or a key's value.
    fn add(&mut self, node: Node) {
        let refused = match self.open.last_mut() {
            None => {
                self.root = Some(node);
                None
            }
            Some(Open::List { items, .. }) => {
                items.push(node);
                None
            }
            Some(Open::Map { entries, key, seen, .. }) => match key.take() {
                Some(Key { text: Some(text), place }) => {
                    entries.push(Entry { key: text, key_place: place, node });
                    None
                }
                Some(Key { text: None, .. }) => None,
                None => {
                    let place = node.place;
                    let (text, refused) = key_text(node, seen);
                    *key = Some(Key { text, place });
                    refused.map(|message| (place, message))
                }
            },
        };
        if let Some((place, message)) = refused {
            self.mistake(place, message);
        }
    }
}

/// Returns the text of a key that is not in `seen`, or the reason why it is refused.
fn key_text(node: Node, seen: &mut HashMap<String, Place>) -> (Option<String>, Option<String>) {
    match node.value {
        Value::Scalar { text, .. } => match seen.get(&text) {
            Some(first) => {
                let message =
                    format!("`{}` is a duplicate key; it first appears on line {}", shortened(&text), first.line);
                (None, Some(message))
            }
            None => {
                seen.insert(text.clone(), node.place);
                (Some(text), None)
            }
        },
        Value::List(_) | Value::Map(_) => (None, Some("a key must be text, not a list or a mapping".to_owned())),
        Value::Refused => (None, None),
    }
}
