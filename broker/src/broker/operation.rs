//! Operations that change several things, one after the other.

/// Runs an operation to its end, also where its caller is gone before that: what it does would be half done.
///
/// # Panics
/// Where the operation does, and outside tokio.
pub async fn to_its_end<T: Send + 'static>(operation: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(operation).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process ends, and nobody waits for this any more.
            Err(_) => std::future::pending().await,
        },
    }
}
