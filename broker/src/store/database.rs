//! An open redb database that never panics when dropped. After a panic within redb its locks are poisoned, and closing
//! the database panics too. The second panic must not hide the original reason why the server stops.

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
        self.0.as_ref().expect("the database is present until drop")
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let database = self.0.take();
        if let Err(reason) = caught(|| drop(database)) {
            tracing::error!(reason, "a database could not be closed cleanly; the next start will verify it");
        }
    }
}
