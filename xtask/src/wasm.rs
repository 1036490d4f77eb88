//! Provides the wasm32 target and builds the modules in `guests/` with it.
//!
//! It tries, in order: the target of the installed toolchain; adding the target with rustup; and building the standard
//! library from source with Debian's packages of Rust for the web.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

const TARGET: &str = "wasm32-unknown-unknown";

/// rustc, cargo, and the source of the standard library. All three must have the same version.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Timeout in seconds for rustup, which may have no network.
const RUSTUP_SECONDS_MAX: &str = "60";

/// Number of characters of rustup's last line to print. The rest has paths and causes.
const RUSTUP_SAID_CHARS: usize = 120;

/// Builds `guests/` in release mode, and returns the folder with a `.wasm` file for each module.
pub(crate) fn build_guests(root: &Path) -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    let guests = root.join("guests");
    let build_dir = root.join("target/guests-wasm");
    println!("Modules: building guests/ for {TARGET} with {}", toolchain.name());
    let mut build = toolchain.cargo(&guests)?;
    build.env("CARGO_TARGET_DIR", &build_dir);
    build.args(["build", "--release", "--locked", "--target", TARGET, "--workspace"]);
    build.args(["--exclude", "millstream", "--exclude", "millstream-macros"]);
    process::run(&mut build)?;
    collect(&build_dir.join(TARGET).join("release"), &root.join("target/guests"))
}

/// Copies the built modules to files with the names that users see.
fn collect(from: &Path, to: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(to)?;
    let mut modules = Vec::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read the folder {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
        let file = to.join(format!("{stem}.wasm"));
        std::fs::copy(&path, &file).with_context(|| format!("cannot write {}", file.display()))?;
        modules.push((stem, std::fs::metadata(&file)?.len()));
    }
    modules.sort();
    let bytes: u64 = modules.iter().map(|(_, bytes)| bytes).sum();
    println!("Modules: {} in {}, {} KiB in total", modules.len(), to.display(), bytes / 1024);
    Ok(to.to_owned())
}

/// A toolchain that can build for wasm32.
enum Toolchain {
    /// The project's toolchain, which has the target.
    Installed,
    /// Debian's toolchain, which builds the standard library from source.
    Debian { linker: PathBuf },
}

impl Toolchain {
    fn find() -> Result<Self> {
        if has_target()? {
            return Ok(Self::Installed);
        }
        println!("Modules: this Rust toolchain has no {TARGET} target; adding it with rustup");
        let mut rustup = Command::new("timeout");
        rustup.args([RUSTUP_SECONDS_MAX, "rustup", "target", "add", TARGET]);
        process::clean(&mut rustup);
        // rustup or its network may be missing.
        let why = match rustup.output() {
            Ok(output) if output.status.success() && has_target()? => return Ok(Self::Installed),
            Ok(output) => String::from_utf8_lossy(&output.stderr)
                .lines()
                .last()
                .unwrap_or("no answer")
                .chars()
                .take(RUSTUP_SAID_CHARS)
                .collect(),
            Err(error) => error.to_string(),
        };
        if !debian_is_installed() {
            println!(
                "Modules: rustup cannot add it ({}); installing Debian's {} (once, about 300 MB)",
                why.trim(),
                DEBIAN_PACKAGES.join(" ")
            );
            install_debian(&why)?;
        }
        Ok(Self::Debian { linker: rust_lld()? })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Installed => "the installed toolchain",
            Self::Debian { .. } => "Debian's Rust for the web, standard library included",
        }
    }

    fn cargo(&self, folder: &Path) -> Result<Command> {
        let Self::Debian { linker } = self else { return Ok(process::cargo(folder)) };
        let mut command = Command::new("/usr/bin/cargo");
        process::clean(&mut command);
        command.current_dir(folder);
        command.env_remove("RUSTUP_TOOLCHAIN");
        command.env("RUSTC", "/usr/bin/rustc");
        // `build-std` is unstable, but this cargo and this source have the same version.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        command.args(["-Z", "build-std=std,panic_abort"]);
        Ok(command)
    }
}

/// Returns whether the installed toolchain has the standard library of the target.
fn has_target() -> Result<bool> {
    let mut rustc = Command::new("rustc");
    process::clean(&mut rustc);
    let libdir = process::output(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
    Ok(Path::new(libdir.trim()).exists())
}

fn debian_is_installed() -> bool {
    let library = Path::new("/usr/lib/rustlib/src/rust/library/std/Cargo.toml");
    let rustc = Command::new("/usr/bin/rustc").arg("--version").output();
    library.exists() && Path::new("/usr/bin/cargo").exists() && rustc.is_ok_and(|output| output.status.success())
}

fn install_debian(rustup_said: &str) -> Result<()> {
    let advice = || {
        format!(
            "the modules need the {TARGET} target: rustup could not add it ({}). Either give rustup a network and \
             run `rustup target add {TARGET}`, or on Debian run `apt-get install {}` as root",
            rustup_said.trim(),
            DEBIAN_PACKAGES.join(" ")
        )
    };
    let apt = |arguments: &[&str]| {
        let mut command = if is_root() {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "apt-get"]);
            sudo
        };
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        process::output(&mut command).map(drop).with_context(advice)
    };
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"].into_iter().chain(DEBIAN_PACKAGES).collect();
    // The package lists of an image are often stale or missing.
    if apt(&install).is_err() {
        apt(&["update"])?;
        apt(&install)?;
    }
    if !debian_is_installed() {
        bail!("{}: the packages were installed, but /usr/bin/rustc or the library's source is missing", advice());
    }
    Ok(())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Returns the linker of the installed toolchain, because Debian's Rust packages have no linker for wasm.
fn rust_lld() -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    process::clean(&mut rustc);
    let sysroot = process::output(rustc.args(["--print", "sysroot"]))?;
    let mut rustc = Command::new("rustc");
    process::clean(&mut rustc);
    let host = process::output(rustc.args(["--print", "host-tuple"]))?;
    let lld = Path::new(sysroot.trim()).join("lib/rustlib").join(host.trim()).join("bin/rust-lld");
    if !lld.exists() {
        bail!("the installed toolchain has no rust-lld at {}", lld.display());
    }
    Ok(lld)
}
