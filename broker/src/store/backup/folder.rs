//! The folder that a backup is written to. It counts as a backup only once its manifest is there.

use millstream_record::checksum;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::file_system::{FileSystem, Open, StoreFile, parent, system_files};
use super::super::segment;
use super::{BackupError, BackupFile, FileName, MANIFEST_FILE, Manifest, sync_folder};

const MANIFEST_FILE_NEW: &str = "BACKUP.new";

/// A backup that is being written. If dropped before [`BackupFolder::finish`], it removes everything that it wrote.
#[derive(Debug)]
pub struct BackupFolder {
    system: Arc<dyn FileSystem>,
    path: PathBuf,
    /// Whether the folder was created here rather than found empty.
    made: bool,
    open: Option<(String, Box<dyn StoreFile>)>,
    files: BTreeMap<String, BackupFile>,
    finished: bool,
}

impl BackupFolder {
    /// Creates the folder if it does not exist. Its parent must exist.
    ///
    /// # Errors
    /// [`BackupError::NotEmpty`] or an I/O error. In both cases nothing was changed.
    pub fn create(path: &Path) -> Result<Self, BackupError> {
        Self::create_on(&system_files(), path)
    }

    /// Like [`BackupFolder::create`], on the given file system.
    ///
    /// # Errors
    /// As [`BackupFolder::create`].
    pub fn create_on(system: &Arc<dyn FileSystem>, path: &Path) -> Result<Self, BackupError> {
        let made = match system.make_folder(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !super::is_vacant(system, path)? {
                    return Err(BackupError::NotEmpty { path: path.to_owned() });
                }
                false
            }
            Err(source) => return Err(BackupError::io("make", path, source)),
        };
        Ok(Self {
            system: system.clone(),
            path: path.to_owned(),
            made,
            open: None,
            files: BTreeMap::new(),
            finished: false,
        })
    }

    /// Checks that the folder's disk has room for a backup of `bytes` bytes.
    ///
    /// # Errors
    /// [`BackupError::NoRoom`] or an I/O error.
    pub fn check_room(&self, bytes: u64) -> Result<(), BackupError> {
        super::check_room(&self.system, &self.path, bytes)
    }

    /// Writes a piece of a file. The pieces of a file must arrive in order, and one file after the other.
    ///
    /// # Errors
    /// [`BackupError::Garbled`] if the piece does not continue the previous one, or an I/O error.
    pub fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), BackupError> {
        if self.open.as_ref().is_none_or(|(open, _)| open != name) {
            self.close()?;
            self.begin(name)?;
        }
        let (Some((_, file)), Some(written)) = (&mut self.open, self.files.get_mut(name)) else {
            return Err(garbled(name, "its pieces are not consecutive"));
        };
        if offset != written.bytes {
            return Err(garbled(name, format!("a piece for byte {offset} arrived at byte {}", written.bytes)));
        }
        file.write(offset, bytes).map_err(|source| BackupError::io("write", &self.path.join(name), source))?;
        written.bytes += bytes.len() as u64;
        written.crc32c = checksum::crc32c_append(written.crc32c, bytes);
        Ok(())
    }

    /// Checks that everything arrived as it was sent, and completes the backup by writing its manifest.
    ///
    /// # Errors
    /// [`BackupError::Garbled`] if something did not, or an I/O error. Everything written is then removed.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(), BackupError> {
        self.close()?;
        for sent in &manifest.files {
            let came = self.files.remove(&sent.name).ok_or_else(|| garbled(&sent.name, "it did not arrive"))?;
            if came != *sent {
                let shown = |file: &BackupFile| format!("{} bytes with checksum {:08x}", file.bytes, file.crc32c);
                return Err(garbled(&sent.name, format!("{} arrived, not {}", shown(&came), shown(sent))));
            }
        }
        if let Some(name) = self.files.keys().next() {
            return Err(garbled(name, "the manifest does not list it"));
        }
        if manifest.files.iter().any(|file| file.name.starts_with(segment::FOLDER)) {
            sync_folder(&self.system, &self.path.join(segment::FOLDER))?;
        }
        let (new, path) = (self.path.join(MANIFEST_FILE_NEW), self.path.join(MANIFEST_FILE));
        let written = self.system.write(&new, &manifest.encode());
        written.map_err(|source| BackupError::io("write", &new, source))?;
        sync_folder(&self.system, &self.path)?;
        self.system.rename(&new, &path).map_err(|source| BackupError::io("rename", &new, source))?;
        self.finished = true;
        sync_folder(&self.system, &self.path)?;
        if self.made { sync_folder(&self.system, parent(&self.path)) } else { Ok(()) }
    }

    fn begin(&mut self, name: &str) -> Result<(), BackupError> {
        let Some(kind) = FileName::parse(name) else {
            return Err(garbled(name, "a backup cannot contain a file of this name"));
        };
        let path = self.path.join(name);
        if matches!(kind, FileName::Segment(_)) {
            let folder = parent(&path);
            self.system.make_folders(folder).map_err(|source| BackupError::io("make", folder, source))?;
        }
        let file = match self.system.open(&path, Open::New) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(garbled(name, "it arrived twice"));
            }
            created => created.map_err(|source| BackupError::io("make", &path, source))?,
        };
        self.files.insert(name.to_owned(), BackupFile { name: name.to_owned(), bytes: 0, crc32c: 0 });
        self.open = Some((name.to_owned(), file));
        Ok(())
    }

    fn close(&mut self) -> Result<(), BackupError> {
        let Some((name, file)) = self.open.take() else { return Ok(()) };
        file.sync_data().map_err(|source| BackupError::io("sync", &self.path.join(name), source))
    }
}

fn garbled(file: &str, reason: impl Into<String>) -> BackupError {
    BackupError::Garbled { file: file.to_owned(), reason: reason.into() }
}

impl Drop for BackupFolder {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.open = None;
        // The folder was empty before, so everything in it was written here. If a failing disk keeps some files, the
        // user can remove them after reading the error that led here; without the manifest the folder is no backup.
        let _ = if self.made { self.system.remove_folder(&self.path) } else { empty(&self.system, &self.path) };
    }
}

fn empty(system: &Arc<dyn FileSystem>, folder: &Path) -> io::Result<()> {
    for name in [super::JOURNAL_FILE, super::TABLES_FILE, MANIFEST_FILE_NEW] {
        match system.remove(&folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match system.remove_folder(&folder.join(segment::FOLDER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn file(name: &str, bytes: &[u8]) -> BackupFile {
        BackupFile { name: name.to_owned(), bytes: bytes.len() as u64, crc32c: checksum::crc32c(bytes) }
    }

    const SEGMENT: &str = "segments/0000000000000003.segment";

    #[test]
    fn a_folder_is_a_backup_once_all_files_are_as_the_manifest_says() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("backup");
        let mut folder = BackupFolder::create(&path).unwrap();
        folder.write("journal", 0, b"ab").unwrap();
        folder.write("journal", 2, b"c").unwrap();
        folder.write(SEGMENT, 0, b"").unwrap();
        let manifest = Manifest::new(5, vec![file("journal", b"abc"), file(SEGMENT, b"")]);
        folder.finish(&manifest).unwrap();
        assert_eq!(Manifest::read(&system_files(), &path).unwrap(), manifest);
        assert_eq!(fs::read(path.join("journal")).unwrap(), b"abc");
    }

    #[test]
    fn what_is_not_as_it_was_sent_is_removed() {
        for found_empty in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let path = parent.path().join("backup");
            if found_empty {
                fs::create_dir(&path).unwrap();
            }
            for (files, word) in [
                (vec![file("journal", b"abd"), file(SEGMENT, b"s")], "checksum"),
                (vec![file("journal", b"ab"), file(SEGMENT, b"s")], "3 bytes"),
                (vec![file("journal", b"abc")], "does not list"),
                (vec![file("journal", b"abc"), file(SEGMENT, b"s"), file("tables", b"")], "did not arrive"),
            ] {
                let mut folder = BackupFolder::create(&path).unwrap();
                folder.write("journal", 0, b"abc").unwrap();
                folder.write(SEGMENT, 0, b"s").unwrap();
                let error = folder.finish(&Manifest::new(5, files)).unwrap_err();
                assert!(matches!(&error, BackupError::Garbled { .. }) && error.to_string().contains(word), "{error}");
                assert_eq!(path.exists(), found_empty);
                assert!(!found_empty || names(&path).is_empty());
            }
        }
    }

    #[test]
    fn pieces_out_of_order_and_foreign_names_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let mut folder = BackupFolder::create(&parent.path().join("backup")).unwrap();
        folder.write("journal", 0, b"abc").unwrap();
        for (name, offset) in
            [("journal", 2), ("journal", 4), ("tables", 1), ("../x", 0), ("journal", 0), ("BACKUP", 0)]
        {
            let written = folder.write(name, offset, b"x");
            assert!(matches!(written, Err(BackupError::Garbled { .. })), "{name} {offset}: {written:?}");
        }
        assert_eq!(names(parent.path()), ["backup"]);
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("letter"), "dear").unwrap();
        let refused = BackupFolder::create(folder.path());
        assert!(matches!(refused, Err(BackupError::NotEmpty { .. })), "{refused:?}");
        let of_file = BackupFolder::create(&folder.path().join("letter"));
        assert!(matches!(of_file, Err(BackupError::NotEmpty { .. })), "{of_file:?}");
        assert_eq!(names(folder.path()), ["letter"]);
    }
}
