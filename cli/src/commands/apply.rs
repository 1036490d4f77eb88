//! `millstream apply`: creates and updates pipelines from pipeline files. Mistakes that the text alone shows are found
//! before anything is sent to the server, which finds the others.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use millstream_api::v1;
use millstream_client::{Client, ClientError};
use millstream_runtime::pipeline::{self, PipelineSpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::module;
use crate::exit;
use crate::output::{Out, OutputArgs};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  millstream apply -f pipeline.yaml
  millstream apply -f pipeline.yaml --dry-run
  millstream apply -f flights.yaml -f alerts.yaml";

/// How the mistake ends that names a module which the server does not have. What to do about it depends on the command.
pub(super) const NOT_UPLOADED: &str = "is not uploaded";

/// Create or update pipelines from pipeline files
///
/// Modules that a file names by path, relative to the file, are uploaded first, as FILE-STEM:HASH. Prints what changed.
/// If there are mistakes, prints each as FILE:LINE:COLUMN and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A pipeline file, or - for stdin; may be given more than once
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Check the files and print what would change, but change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `apply`.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<ExitCode> {
    let mut files = Vec::with_capacity(args.files.len());
    for path in &args.files {
        files.push(File::read(path)?);
    }
    // One mistake in any file prevents all files from being applied.
    if files.iter().any(|file| !file.mistakes.is_empty()) {
        for file in files.iter_mut().filter(|file| !file.mistakes.is_empty()) {
            file.ask_for_more_mistakes(client).await;
        }
        return report(&files, &args);
    }
    for file in &mut files {
        file.apply(args.dry_run, client).await.with_context(|| format!("cannot apply {}", file.shown))?;
        if !file.mistakes.is_empty() {
            break;
        }
    }
    report(&files, &args)
}

/// A pipeline file, with the result of applying it.
pub(super) struct File {
    /// Name of the file for output: its path as given, or `stdin`.
    shown: String,
    pub(super) text: String,
    /// Modules that the file names by path, with their bytes.
    pub(super) modules: Vec<PathModule>,
    pub(super) mistakes: Vec<v1::Mistake>,
    mistakes_left_out: usize,
    changes: Vec<String>,
    /// Whether the server accepted the file without mistakes.
    applied: bool,
    /// The pipeline after the call; `None` if the server returned none.
    pipeline: Option<v1::Pipeline>,
}

pub(super) struct PathModule {
    /// Path as written in the file.
    pub(super) path: String,
    /// NAME:TAG, where the tag is the beginning of the module's hash.
    pub(super) reference: String,
    hash: String,
    pub(super) bytes: Bytes,
    pub(super) line: u32,
    pub(super) column: u32,
}

impl File {
    /// Reads the file, and the modules that it names by path.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let (shown, text) = if path == Path::new("-") {
            ("stdin".to_owned(), io::read_to_string(io::stdin()))
        } else {
            (path.display().to_string(), std::fs::read_to_string(path))
        };
        let text = text.with_context(|| format!("cannot read {shown}"))?;
        let mut file = Self {
            shown,
            text,
            modules: Vec::new(),
            mistakes: Vec::new(),
            mistakes_left_out: 0,
            changes: Vec::new(),
            applied: false,
            pipeline: None,
        };
        match pipeline::parse(&file.text) {
            Ok(spec) => file.read_modules(&spec, path.parent().unwrap_or(Path::new(""))),
            Err(mistakes) => {
                file.mistakes_left_out = mistakes.left_out();
                file.mistakes = mistakes
                    .into_iter()
                    .map(|mistake| v1::Mistake { line: mistake.line, column: mistake.column, message: mistake.message })
                    .collect();
            }
        }
        Ok(file)
    }

    fn read_modules(&mut self, spec: &PipelineSpec, folder: &Path) {
        for stage in &spec.stages {
            let module = &stage.module.value;
            let Some(path) = module.path().filter(|path| !self.modules.iter().any(|known| known.path == **path)) else {
                continue;
            };
            let place = stage.module.place;
            match std::fs::read(folder.join(path)) {
                Ok(bytes) => {
                    let hash = hex(&Sha256::digest(&bytes));
                    self.modules.push(PathModule {
                        path: path.to_owned(),
                        reference: format!("{}:{}", module.name(), module::short(&hash)),
                        hash,
                        bytes: Bytes::from(bytes),
                        line: place.line,
                        column: place.column,
                    });
                }
                Err(error) => self.mistakes.push(v1::Mistake {
                    line: place.line,
                    column: place.column,
                    message: format!("cannot read module {}: {error}", folder.join(path).display()),
                }),
            }
        }
    }

    /// Asks the server for mistakes that the text alone does not show: topics, modules, cycles. If no server answers,
    /// only the mistakes found locally are reported.
    async fn ask_for_more_mistakes(&mut self, client: &Client) {
        let request = v1::ApplyPipelineRequest { yaml: self.text.clone(), dry_run: true, ..Default::default() };
        let Ok(answer) = client.admin().apply_pipeline(request).await else { return };
        for mistake in answer.mistakes {
            // Modules are not uploaded for a file that will not be applied, so these mistakes say nothing.
            let of_upload = mistake.message.contains("no module was uploaded for it");
            if !of_upload && !self.mistakes.contains(&mistake) {
                self.mistakes.push(mistake);
            }
        }
        self.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    }

    async fn apply(&mut self, dry_run: bool, client: &Client) -> Result<(), anyhow::Error> {
        let mut uploaded = Vec::new();
        let result = self.upload_and_apply(dry_run, &mut uploaded, client).await;
        // The server checks a file against modules that it has. A dry run therefore uploads them too, and afterwards
        // removes those that did not exist before.
        if dry_run {
            for reference in &uploaded {
                match client.admin().remove_module(reference).await {
                    Err(error) if result.is_ok() => {
                        return Err(error)
                            .with_context(|| format!("cannot remove module {reference} after the dry run"));
                    }
                    _ => {}
                }
            }
        }
        result
    }

    async fn upload_and_apply(
        &mut self,
        dry_run: bool,
        uploaded: &mut Vec<String>,
        client: &Client,
    ) -> Result<(), anyhow::Error> {
        for module in &self.modules {
            if is_there(module, client).await? {
                continue;
            }
            match module::upload(&module.reference, module.bytes.clone(), client).await {
                Ok(pushed) => {
                    if pushed.changed {
                        uploaded.push(module.reference.clone());
                        self.changes.push(format!("pushed module {}", module.reference));
                    }
                }
                Err(error) => match error.downcast_ref() {
                    Some(ClientError::Refused { message, .. }) => self.mistakes.push(v1::Mistake {
                        line: module.line,
                        column: module.column,
                        message: message.clone(),
                    }),
                    _ => return Err(error),
                },
            }
        }
        if !self.mistakes.is_empty() {
            return Ok(());
        }
        let modules = self.modules.iter().map(|module| (module.path.clone(), module.reference.clone()));
        let request = v1::ApplyPipelineRequest { yaml: self.text.clone(), modules: modules.collect(), dry_run };
        let applied = client.admin().apply_pipeline(request).await?;
        self.applied = applied.mistakes.is_empty();
        self.mistakes = applied.mistakes;
        for mistake in &mut self.mistakes {
            let advice = format!("{NOT_UPLOADED}: push it with `millstream module push`");
            mistake.message = mistake.message.replace(NOT_UPLOADED, &advice);
        }
        self.changes.extend(applied.changes);
        self.pipeline = applied.pipeline;
        Ok(())
    }

    fn print(&self, out: &mut Out, args: &Args) -> anyhow::Result<()> {
        let name = self.pipeline.as_ref().map_or("", |pipeline| &pipeline.name);
        if args.files.len() > 1 {
            out.line(format_args!("{}:", self.shown))?;
        }
        for change in &self.changes {
            out.line(change)?;
        }
        match &self.pipeline {
            _ if args.dry_run && self.changes.is_empty() => out.line("dry run: nothing would change")?,
            _ if args.dry_run => out.line("dry run: these changes would be made, nothing was changed")?,
            Some(pipeline) if self.changes.is_empty() => {
                out.line(format_args!("pipeline {name} is unchanged and {}", pipeline.state))?;
            }
            Some(pipeline) => {
                out.line(format_args!("pipeline {name} is {}, version {}", pipeline.state, pipeline.version))?;
            }
            None => {}
        }
        Ok(())
    }

    /// Prints each mistake with its line on stderr, and then `not_done`, which says what was not done because of them.
    pub(super) fn print_mistakes(&self, not_done: &str) {
        for mistake in &self.mistakes {
            exit::say(format_args!("{}:{}:{}: {}", self.shown, mistake.line, mistake.column, mistake.message));
            if let Some(place) = shown_place(&self.text, mistake) {
                exit::say(place);
            }
        }
        if self.mistakes_left_out > 0 {
            exit::say(format_args!("and {} more", text::count(self.mistakes_left_out as u64)));
        }
        let mistakes = text::plural((self.mistakes.len() + self.mistakes_left_out) as u64, "mistake");
        exit::say(format_args!("error: {mistakes} in {}: {not_done}", self.shown));
    }

    fn to_json(&self, dry_run: bool) -> Value {
        let mistakes = self.mistakes.iter();
        let mistakes = mistakes
            .map(|mistake| json!({ "line": mistake.line, "column": mistake.column, "message": mistake.message }));
        let modules: BTreeMap<_, _> = self
            .modules
            .iter()
            .map(|module| (&module.path, json!({ "reference": module.reference, "hash": module.hash })))
            .collect();
        json!({
            "file": self.shown,
            "applied": self.applied && !dry_run,
            "changes": self.changes,
            "mistakes": mistakes.collect::<Value>(),
            "modules": modules,
            "pipeline": self.pipeline.as_ref().map(super::pipeline::to_json),
        })
    }
}

async fn is_there(module: &PathModule, client: &Client) -> anyhow::Result<bool> {
    match client.admin().describe_module(&module.reference).await {
        Ok(described) => Ok(described.module.is_some_and(|there| there.hash == module.hash)),
        Err(ClientError::Refused { code: v1::ErrorCode::UnknownModule, .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn report(files: &[File], args: &Args) -> anyhow::Result<ExitCode> {
    let mut out = Out::new();
    if args.output.json() {
        out.json(&files.iter().map(|file| file.to_json(args.dry_run)).collect::<Vec<_>>())?;
    } else {
        for file in files.iter().filter(|file| file.applied) {
            file.print(&mut out, args)?;
        }
    }
    out.finish()?;
    let mut code = ExitCode::SUCCESS;
    for file in files.iter().filter(|file| !file.mistakes.is_empty()) {
        code = ExitCode::from(exit::REFUSED);
        if !args.output.json() {
            file.print_mistakes("the file was not applied");
        }
    }
    Ok(code)
}

/// Returns the line of a mistake with a caret below its column, as compilers print it.
fn shown_place(text: &str, mistake: &v1::Mistake) -> Option<String> {
    let line = text.lines().nth((mistake.line as usize).checked_sub(1)?)?;
    let mut shown = format!("    {}\n    ", text::escaped_but_tabs(line));
    for character in line.chars().take((mistake.column as usize).saturating_sub(1)) {
        shown.push(if character == '\t' { '\t' } else { ' ' });
    }
    shown.push('^');
    Some(shown)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_mistake() {
        let text = "pipeline: a\n\tstages:  x\n";
        let at = |line, column| shown_place(text, &v1::Mistake { line, column, message: String::new() });
        assert_eq!(at(1, 11).unwrap(), "    pipeline: a\n              ^");
        assert_eq!(at(2, 2).unwrap(), "    \tstages:  x\n    \t^");
        assert_eq!(at(3, 1), None);
        assert_eq!(at(0, 0), None);
    }

    #[test]
    fn hashes_are_written_in_hex() {
        assert_eq!(hex(&[0, 0x0f, 0xff]), "000fff");
    }
}
