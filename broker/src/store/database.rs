//! An open database of redb, whose end never panics: after a panic within redb its locks are poisoned, and closing it
//! panics too. That must not take the place of the reason for which the server ends.

use std::ops::Deref;

use redb::Database;

use super::panics::caught;

#[derive(Debug)]
pub(super) struct OpenDatabase(Option<Database>);

impl OpenDatabase {
    pub(super) fn new(database: Database) -> Self {
        Self(Some(database))
    }
}

impl Deref for OpenDatabase {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let database = self.0.take();
        if let Err(reason) = caught(|| drop(database)) {
            tracing::error!(reason, "a database could not be closed in good order: the next start looks through it");
        }
    }
}
