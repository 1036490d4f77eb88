//! Files that are not in the page cache, so that reading them is reading the disk.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

/// All files of a folder, durable: the kernel drops only pages that are on the disk.
#[derive(Debug)]
pub struct ColdFiles {
    files: Vec<File>,
    bytes: u64,
}

impl ColdFiles {
    /// Syncs all files of `folder` and of the folders in it, and drops their pages. Files that go meanwhile are left out.
    ///
    /// # Errors
    /// What the system says.
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

    /// Drops their pages again, without another sync: for files that nobody writes any more.
    ///
    /// # Errors
    /// What the system says.
    pub fn evict(&self) -> io::Result<()> {
        for file in &self.files {
            // The whole file.
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// How large they were together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
