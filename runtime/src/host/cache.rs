//! A cache of compiled code in the data directory. The key is the module's hash and the engine's configuration. Only
//! this process writes to the folder, so the code in it is trusted.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

use super::module_hash::ModuleHash;

/// The folder with the compiled code.
#[derive(Debug)]
pub(super) struct CodeCache {
    folder: PathBuf,
    configuration: u64,
}

impl CodeCache {
    pub(super) fn open(folder: &Path, engine: &Engine) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { folder: folder.to_owned(), configuration: hasher.finish() })
    }

    fn file(&self, hash: &ModuleHash) -> PathBuf {
        self.folder.join(format!("{hash}-{:016x}.cwasm", self.configuration))
    }

    /// Returns the compiled component, or `None` if there is none or it cannot be read, in which case it is compiled
    /// again.
    #[allow(unsafe_code)]
    pub(super) fn get(&self, engine: &Engine, hash: &ModuleHash) -> Option<Component> {
        let file = self.file(hash);
        let bytes = std::fs::read(&file).ok()?;
        let (checksum, code) = bytes.split_first_chunk::<32>()?;
        if *checksum != ModuleHash::of(code).0 {
            tracing::warn!(file = %file.display(), "a compiled module is damaged: compiling it again");
            return None;
        }
        // SAFETY: the file is in the data directory, which only this process writes to and which it has locked, and the
        // checksum shows that the content is what `put` wrote.
        match unsafe { Component::deserialize(engine, code) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a compiled module cannot be loaded: compiling it again");
                None
            }
        }
    }

    /// Stores a compiled component. A failure only means that the module is compiled again at the next start.
    pub(super) fn put(&self, hash: &ModuleHash, component: &Component) {
        let file = self.file(hash);
        if let Err(error) = self.write(&file, component) {
            tracing::warn!(file = %file.display(), %error, "a compiled module cannot be stored");
        }
    }

    fn write(&self, file: &Path, component: &Component) -> Result<(), Box<dyn std::error::Error>> {
        let code = component.serialize()?;
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        let mut out = std::fs::File::create(&partial)?;
        out.write_all(&ModuleHash::of(&code).0)?;
        out.write_all(&code)?;
        std::fs::rename(&partial, file)?;
        Ok(())
    }

    /// Removes the compiled code of a module.
    pub(super) fn remove(&self, hash: &ModuleHash) {
        // The file may not exist.
        let _ = std::fs::remove_file(self.file(hash));
    }
}
