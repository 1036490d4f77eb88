//! Parses the text of a pipeline file to a [`PipelineSpec`], and checks everything that can be checked without a
//! broker.

use std::collections::{BTreeMap, HashMap};

use millstream_broker::name;

use super::mistake::{Mistake, Mistakes, article, reads_what_it_writes, shortened};
use super::module_ref::ModuleRef;
use super::nearest::{did_you_mean, nearest};
use super::place::{Place, Placed};
use super::spec::{DEAD_LETTERS_SUFFIX, PipelineSpec, REPARTITION_SUFFIX, StageSpec, Start};
use super::yaml::{self, Entry, Node, Value};
use crate::failure::FailurePolicy;
use crate::host::{CallLimits, StageKind};

/// Maximum size of a pipeline file, in bytes: a hundred times that of a long file, and so small that parsing it costs a
/// broker almost nothing.
pub const PIPELINE_FILE_BYTES_MAX: usize = 256 * 1024;

/// Maximum number of stages in a pipeline, because each worker thread may hold an instance of each stage's module.
pub const STAGES_MAX: usize = 64;

/// Maximum deadline of a call that a stage may set, because a call occupies one of a few worker threads.
pub const CALL_DEADLINE_MS_MAX: u64 = 60_000;

/// Minimum memory of a stage, in bytes: one WebAssembly page.
pub const MEMORY_BYTES_MIN: usize = 64 * 1024;

/// Maximum memory that a stage may set, in bytes: the address space of 32-bit WebAssembly.
pub const MEMORY_BYTES_MAX: usize = 4 * 1024 * 1024 * 1024;

/// Maximum output of one call of a stage, in bytes. The output becomes one commit, which is held in memory.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024 * 1024;

const FILE_KEYS: [&str; 6] = ["pipeline", "from", "start", "stages", "to", "dead-letters"];
const KIND_KEYS: [&str; 3] = ["filter", "map", "aggregate"];
const STAGE_KEYS: [&str; 9] = ["filter", "map", "aggregate", "name", "with", "on-failure", "to", "limits", "keeps-key"];
const LIMIT_KEYS: [&str; 3] = ["call-deadline-ms", "memory-bytes-max", "output-bytes-max"];

/// Parses a pipeline file.
///
/// # Errors
/// All mistakes of the file itself, each with its place.
pub fn parse(text: &str) -> Result<PipelineSpec, Mistakes> {
    let (spec, mistakes) = parse_what_can_be(text);
    Mistakes::none_in(mistakes)?;
    // Without a mistake there is a pipeline, because the reader reports everything that keeps it from making one.
    spec.ok_or_else(|| Mistakes::new(vec![Mistake::new(Place::START, NO_PIPELINE)]))
}

const NO_PIPELINE: &str = "the file has no pipeline; it must begin with `pipeline: <name>`";

/// Returns as much of a pipeline as the text gives, and the mistakes of the text. If there are mistakes, the pipeline
/// may lack parts, and its name may be empty: it can only be used to find further mistakes.
pub(super) fn parse_what_can_be(text: &str) -> (Option<PipelineSpec>, Vec<Mistake>) {
    let mut reader = Reader { mistakes: Vec::new() };
    if text.len() > PIPELINE_FILE_BYTES_MAX {
        let message = format!("the file has {} bytes; the maximum is {PIPELINE_FILE_BYTES_MAX}", text.len());
        reader.mistake(Place::START, message);
        return (None, reader.mistakes);
    }
    let spec = match yaml::load(text, &mut reader.mistakes) {
        Some(root) if !root.is_null() => reader.pipeline(&root),
        _ => {
            if reader.mistakes.is_empty() {
                reader.mistake(Place::START, NO_PIPELINE);
            }
            None
        }
    };
    (spec, reader.mistakes)
}

/// Converts nodes, and collects their mistakes. A function that returns `None` has reported the reason.
struct Reader {
    mistakes: Vec<Mistake>,
}

/// The entries of a mapping whose keys have been checked.
struct Fields<'a> {
    place: Place,
    entries: &'a [Entry],
    /// Known keys that unknown keys resemble. They are reported as misspelt, and so not as missing.
    meant: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

impl Reader {
    fn mistake(&mut self, place: Place, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(place, message));
    }

    fn pipeline(&mut self, root: &Node) -> Option<PipelineSpec> {
        let fields = self.fields(root, "the file", &FILE_KEYS)?;
        let name = self.required(&fields, "pipeline", "the pipeline's name").and_then(|entry| self.name(entry));
        let from = self.required(&fields, "from", "the topic to read, or a list of them");
        let from = from.map(|entry| self.sources(entry)).unwrap_or_default();
        let start = fields.get("start").and_then(|entry| self.start(entry)).unwrap_or(Start::Earliest);
        let stages = self.required(&fields, "stages", "a list of filter, map and aggregate stages");
        if fields.get("to").is_none()
            && !fields.meant.contains(&"to")
            && let Some(entry) = stages
        {
            self.last_stage_writes(entry);
        }
        let stages = stages.map(|entry| self.stages(entry)).unwrap_or_default();
        let to = fields.get("to").and_then(|entry| self.output_topic(entry));
        let dead_letters = fields.get("dead-letters").and_then(|entry| self.topic(entry));

        let name = name.unwrap_or_else(|| Placed::new(String::new(), fields.place));
        let spec = PipelineSpec { name, from, start, stages, to, dead_letters };
        self.stage_names(&spec.stages);
        self.topics_apart(&spec);
        Some(spec)
    }

    fn sources(&mut self, entry: &Entry) -> Vec<Placed<String>> {
        let mut topics: Vec<Placed<String>> = Vec::new();
        let mut first = HashMap::new();
        for topic in self.one_or_more(entry) {
            if let Some(earlier) = first.insert(topic.value.clone(), topic.place) {
                self.mistake(topic.place, format!("`{}` is already listed, on {earlier}", topic.value));
                continue;
            }
            topics.push(topic);
        }
        topics
    }

    fn one_or_more(&mut self, entry: &Entry) -> Vec<Placed<String>> {
        let Value::List(items) = &entry.node.value else {
            return self.topic(entry).into_iter().collect();
        };
        if items.is_empty() {
            self.mistake(entry.node.place, "`from` is empty; name at least one topic");
        }
        items.iter().filter_map(|item| self.topic_in(item, "from", item.place)).collect()
    }

    fn start(&mut self, entry: &Entry) -> Option<Start> {
        let chosen = self.choice(entry, &["earliest", "latest"])?;
        Some(if chosen == "latest" { Start::Latest } else { Start::Earliest })
    }

    fn stages(&mut self, entry: &Entry) -> Vec<StageSpec> {
        match &entry.node.value {
            Value::List(items) if items.is_empty() => {
                self.mistake(entry.node.place, "`stages` is empty; a pipeline has at least one stage");
                Vec::new()
            }
            Value::List(items) => {
                if let Some(item) = items.get(STAGES_MAX) {
                    self.mistake(item.place, format!("more than {STAGES_MAX} stages; split the pipeline"));
                }
                items.iter().take(STAGES_MAX).filter_map(|item| self.stage(item)).collect()
            }
            Value::Refused => Vec::new(),
            _ if entry.node.is_null() => {
                self.mistake(entry.key_place, "`stages` has no value; a pipeline has at least one stage");
                Vec::new()
            }
            _ => {
                self.mistake(entry.node.place, "`stages` must be a list; begin each stage with a dash");
                Vec::new()
            }
        }
    }

    fn stage(&mut self, node: &Node) -> Option<StageSpec> {
        let fields = self.fields(node, "a stage", &STAGE_KEYS)?;
        let kind = self.kind(&fields);
        let module = kind.as_ref().and_then(|(_, entry)| self.module(entry));
        let name = match (fields.get("name"), &module) {
            (Some(entry), _) => self.stage_name(entry),
            (None, Some(module)) => self.default_stage_name(module),
            (None, None) => None,
        };
        let with = fields.get("with").map(|entry| self.parameters(entry)).unwrap_or_default();
        let on_failure = fields.get("on-failure").and_then(|entry| self.on_failure(entry));
        let to = fields.get("to").and_then(|entry| self.output_topic(entry));
        let limits = fields.get("limits").map(|entry| self.limits(entry)).unwrap_or_default();
        let keeps_key = fields.get("keeps-key").and_then(|entry| self.truth(entry));

        let (kind, kind_entry) = kind?;
        if let (Some(entry), StageKind::Filter | StageKind::Aggregate) = (fields.get("keeps-key"), kind) {
            self.mistake(
                entry.key_place,
                format!("`keeps-key` is only for map stages; this stage is {}", article(kind)),
            );
        }
        let module = module?;
        Some(StageSpec {
            kind: Placed::new(kind, kind_entry.key_place),
            // A stage whose name was refused is kept for its module and topics. An empty name cannot conflict with
            // another name.
            name: name.unwrap_or_else(|| Placed::new(String::new(), module.place)),
            module,
            with,
            on_failure: on_failure.unwrap_or(FailurePolicy::Stop),
            to,
            limits,
            keeps_key: kind == StageKind::Map && keeps_key.unwrap_or(false),
        })
    }

    /// Returns the key that determines the kind of the stage and names its module.
    fn kind<'a>(&mut self, fields: &Fields<'a>) -> Option<(StageKind, &'a Entry)> {
        let mut kinds = fields.entries.iter().filter_map(|entry| Some((stage_kind(&entry.key)?, entry)));
        let Some((kind, entry)) = kinds.next() else {
            if !KIND_KEYS.iter().any(|key| fields.meant.contains(key)) {
                self.mistake(fields.place, "the stage has no module; add `filter`, `map` or `aggregate`");
            }
            return None;
        };
        for (other, entry) in kinds {
            let message = format!("the stage is already {}; add another stage for `{other}`", article(kind));
            self.mistake(entry.key_place, message);
        }
        Some((kind, entry))
    }

    fn module(&mut self, entry: &Entry) -> Option<Placed<ModuleRef>> {
        let (text, place) = self.text(entry)?;
        match ModuleRef::new(text) {
            Ok(module) => Some(Placed::new(module, place)),
            Err(message) => {
                self.mistake(place, message);
                None
            }
        }
    }

    fn stage_name(&mut self, entry: &Entry) -> Option<Placed<String>> {
        let name = self.name(entry)?;
        if name.value.contains('.') {
            self.mistake(name.place, format!("a stage's name must not contain dots: {:?}", shortened(&name.value)));
            return None;
        }
        Some(name)
    }

    fn default_stage_name(&mut self, module: &Placed<ModuleRef>) -> Option<Placed<String>> {
        let name = module.value.name();
        if !name::is_valid(name) || name.contains('.') {
            let message =
                format!("the module's name {:?} cannot name a stage; give the stage a `name`", shortened(name));
            self.mistake(module.place, message);
            return None;
        }
        Some(Placed::new(name.to_owned(), module.place))
    }

    fn parameters(&mut self, entry: &Entry) -> BTreeMap<String, String> {
        let entries = match &entry.node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Refused => &[],
            _ if entry.node.is_null() => &[],
            _ => {
                self.mistake(entry.node.place, "`with` must be a mapping: one `name: value` for each parameter");
                &[]
            }
        };
        let mut parameters = BTreeMap::new();
        for entry in entries {
            if let Some((text, _)) = self.text(entry) {
                parameters.insert(entry.key.clone(), text.to_owned());
            }
        }
        parameters
    }

    fn on_failure(&mut self, entry: &Entry) -> Option<FailurePolicy> {
        Some(match self.choice(entry, &["stop", "skip", "dead-letter"])? {
            "skip" => FailurePolicy::Skip,
            "dead-letter" => FailurePolicy::DeadLetter,
            _ => FailurePolicy::Stop,
        })
    }

    fn limits(&mut self, entry: &Entry) -> CallLimits {
        let mut limits = CallLimits::default();
        if matches!(entry.node.value, Value::Refused) || entry.node.is_null() {
            return limits;
        }
        let Some(fields) = self.fields(&entry.node, "`limits`", &LIMIT_KEYS) else { return limits };
        let mut number = |key, least: usize, most: usize| {
            let entry = fields.get(key)?;
            self.number(entry, least as u64, most as u64)
        };
        let bytes = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(ms) = number("call-deadline-ms", 1, CALL_DEADLINE_MS_MAX as usize) {
            limits.call_deadline_ms = ms;
        }
        if let Some(most) = number("memory-bytes-max", MEMORY_BYTES_MIN, MEMORY_BYTES_MAX) {
            limits.memory_bytes_max = bytes(most);
        }
        if let Some(most) = number("output-bytes-max", 1, OUTPUT_BYTES_MAX) {
            limits.output_bytes_max = bytes(most);
        }
        limits
    }

    /// Reports a last stage without a `to` in a pipeline without a `to`, whatever other mistakes the stage has.
    fn last_stage_writes(&mut self, stages: &Entry) {
        if let Value::List(items) = &stages.node.value
            && let Some(Node { value: Value::Map(entries), place }) = items.last()
            && !entries.iter().any(|entry| entry.key == "to" || nearest(&entry.key, STAGE_KEYS) == Some("to"))
        {
            self.mistake(*place, "the last stage's output has no topic; add a `to` to this stage or to the pipeline");
        }
    }

    fn stage_names(&mut self, stages: &[StageSpec]) {
        let mut lines: HashMap<&str, u32> = HashMap::new();
        for stage in stages.iter().filter(|stage| !stage.name.value.is_empty()) {
            let Placed { value: name, place } = &stage.name;
            match lines.get(name.as_str()) {
                Some(line) => {
                    let message = format!(
                        "another stage is already called `{name}`, on line {line}; give this stage another `name`"
                    );
                    self.mistake(*place, message);
                }
                None => {
                    lines.insert(name, place.line);
                }
            }
        }
    }

    /// Checks that sources, outputs and the topic for dead letters differ from each other.
    fn topics_apart(&mut self, spec: &PipelineSpec) {
        let sources: HashMap<&str, Place> = spec.from.iter().map(|topic| (topic.value.as_str(), topic.place)).collect();
        for output in spec.placed_outputs() {
            if let Some(source) = sources.get(output.value.as_str()) {
                let message = reads_what_it_writes(&output.value, *source);
                self.mistake(output.place, message);
            }
        }
        if let (Some(StageSpec { to: Some(own), .. }), Some(to)) = (spec.stages.last(), &spec.to)
            && own.value == to.value
        {
            let message = format!(
                "the last stage's own `to` names `{}` as well, so each record would be written twice",
                to.value
            );
            self.mistake(to.place, message);
        }
        self.dead_letters_apart(spec, &sources);
    }

    fn dead_letters_apart(&mut self, spec: &PipelineSpec, sources: &HashMap<&str, Place>) {
        let default_named = spec.dead_letters.is_none();
        if default_named && spec.name.value.is_empty() {
            return;
        }
        let Some(topic) = spec.dead_letter_topic().or_else(|| Some(spec.dead_letters.as_ref()?.value.clone())) else {
            return;
        };
        if default_named && !name::is_valid(&topic) {
            let message = format!("the name is too long for the dead letter topic {:?}", shortened(&topic));
            self.mistake(spec.name.place, message);
        }
        let place = spec.dead_letters.as_ref().map(|named| named.place);
        if let Some(source) = sources.get(topic.as_str()) {
            let message = format!(
                "`{topic}` is both a source and the dead letter topic: the pipeline would read its own dead letters"
            );
            self.mistake(place.unwrap_or(*source), message);
        }
        if let Some(output) = spec.placed_outputs().find(|output| output.value == topic) {
            let message = format!("`{topic}` is both an output and the dead letter topic; use different topics");
            self.mistake(place.unwrap_or(output.place), message);
        }
    }

    // Contents of entries and nodes.

    /// Returns the entries of a mapping, after reporting the keys that are not in `known`.
    fn fields<'a>(&mut self, node: &'a Node, what: &str, known: &[&'static str]) -> Option<Fields<'a>> {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Refused => return None,
            _ => {
                let message = format!("{what} must be a mapping of {}", listed(known));
                self.mistake(node.place, message);
                return None;
            }
        };
        let mut meant = Vec::new();
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let key = shortened(&entry.key);
            match nearest(&entry.key, known.iter().copied()) {
                Some(guess) => {
                    meant.extend(known.iter().find(|known| **known == guess));
                    self.mistake(entry.key_place, format!("unknown key `{key}`; did you mean `{guess}`?"));
                }
                None => {
                    let message = format!("unknown key `{key}`; {what} takes {}", listed(known));
                    self.mistake(entry.key_place, message);
                }
            }
        }
        Some(Fields { place: entries.first().map_or(node.place, |entry| entry.key_place), entries, meant })
    }

    fn required<'a>(&mut self, fields: &Fields<'a>, key: &'static str, what: &str) -> Option<&'a Entry> {
        let entry = fields.get(key);
        if entry.is_none() && !fields.meant.contains(&key) {
            self.mistake(fields.place, format!("`{key}` is missing: {what}"));
        }
        entry
    }

    fn text<'a>(&mut self, entry: &'a Entry) -> Option<(&'a str, Place)> {
        self.text_in(&entry.node, &entry.key, entry.key_place)
    }

    /// Returns the text of a scalar. A missing value has no place of its own, so it is reported at `key_place`.
    fn text_in<'a>(&mut self, node: &'a Node, key: &str, key_place: Place) -> Option<(&'a str, Place)> {
        let key = shortened(key);
        if node.is_null() {
            self.mistake(key_place, format!("`{key}` has no value"));
            return None;
        }
        let what = match &node.value {
            Value::Scalar { text, .. } => return Some((text, node.place)),
            Value::Refused => return None,
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        };
        self.mistake(node.place, format!("`{key}` must be a single value, not {what}"));
        None
    }

    fn name(&mut self, entry: &Entry) -> Option<Placed<String>> {
        let (text, place) = self.text(entry)?;
        self.valid_name(text, place, &entry.key)
    }

    fn valid_name(&mut self, text: &str, place: Place, key: &str) -> Option<Placed<String>> {
        if !name::is_valid(text) {
            let message = format!(
                "`{key}` is {:?}; a name has 1 to {} characters of a-z A-Z 0-9 . _ - and is neither . nor ..",
                shortened(text),
                name::NAME_BYTES_MAX
            );
            self.mistake(place, message);
            return None;
        }
        Some(Placed::new(text.to_owned(), place))
    }

    fn topic(&mut self, entry: &Entry) -> Option<Placed<String>> {
        self.topic_in(&entry.node, &entry.key, entry.key_place)
    }

    fn topic_in(&mut self, node: &Node, key: &str, key_place: Place) -> Option<Placed<String>> {
        let (text, place) = self.text_in(node, key, key_place)?;
        let topic = self.valid_name(text, place, key)?;
        if text.ends_with(REPARTITION_SUFFIX) {
            let message =
                format!("topics named *{REPARTITION_SUFFIX} are reserved for the runtime; choose another name");
            self.mistake(place, message);
            return None;
        }
        Some(topic)
    }

    fn output_topic(&mut self, entry: &Entry) -> Option<Placed<String>> {
        let topic = self.topic(entry)?;
        if topic.value.ends_with(DEAD_LETTERS_SUFFIX) {
            self.mistake(
                topic.place,
                format!("topics named *{DEAD_LETTERS_SUFFIX} are reserved for dead letters; choose another name"),
            );
            return None;
        }
        Some(topic)
    }

    fn choice<'a>(&mut self, entry: &'a Entry, choices: &[&str]) -> Option<&'a str> {
        let (text, place) = self.text(entry)?;
        if !choices.contains(&text) {
            let guess = did_you_mean(text, choices.iter().copied());
            let message = format!("`{}` must be {}, not {:?}{guess}", entry.key, one_of(choices), shortened(text));
            self.mistake(place, message);
            return None;
        }
        Some(text)
    }

    fn truth(&mut self, entry: &Entry) -> Option<bool> {
        let (text, place) = self.text(entry)?;
        match (text, is_plain(entry)) {
            ("true", true) => Some(true),
            ("false", true) => Some(false),
            _ => {
                self.mistake(place, format!("`{}` must be true or false, not {:?}", entry.key, shortened(text)));
                None
            }
        }
    }

    fn number(&mut self, entry: &Entry, least: u64, most: u64) -> Option<u64> {
        let (text, place) = self.text(entry)?;
        let digits = is_plain(entry) && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        let in_range = number.filter(|number| (least..=most).contains(number));
        if in_range.is_none() {
            let message = format!(
                "`{}` must be a whole number from {least} to {most}, not {}",
                entry.key,
                written(text, is_plain(entry))
            );
            self.mistake(place, message);
        }
        in_range
    }
}

fn stage_kind(key: &str) -> Option<StageKind> {
    match key {
        "filter" => Some(StageKind::Filter),
        "map" => Some(StageKind::Map),
        "aggregate" => Some(StageKind::Aggregate),
        _ => None,
    }
}

fn is_plain(entry: &Entry) -> bool {
    matches!(entry.node.value, Value::Scalar { plain: true, .. })
}

fn written(text: &str, plain: bool) -> String {
    if plain { shortened(text) } else { format!("{:?}", shortened(text)) }
}

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn one_of(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
