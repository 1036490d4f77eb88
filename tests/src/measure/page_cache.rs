//! Evicts files from the page cache, so that reading them reads the disk.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

/// The files of a folder. They are synced, because the kernel drops only pages that are on the disk.
#[derive(Debug)]
pub struct ColdFiles {
    files: Vec<File>,
    bytes: u64,
}

impl ColdFiles {
    /// Syncs all files of `folder` and its subfolders, and drops their pages. Files that are removed meanwhile are
    /// skipped.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let mut cold = Self { files: Vec::new(), bytes: 0 };
        cold.add(folder)?;
        cold.evict()?;
        Ok(cold)
    }

    fn add(&mut self, folder: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path)?;
                continue;
            }
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            file.sync_all()?;
            self.bytes += file.metadata()?.len();
            self.files.push(file);
        }
        Ok(())
    }

    /// Drops the files' pages again without another sync, which suits files that are no longer written to.
    ///
    /// # Errors
    /// Returns the system's error.
    pub fn evict(&self) -> io::Result<()> {
        for file in &self.files {
            // Without a length, the advice covers the whole file.
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Returns the total size of the files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
