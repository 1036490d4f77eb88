//! Operations that make several changes one after the other.

/// Runs an operation to completion even if the returned future is dropped, so that its changes are never left half
/// done.
///
/// # Panics
/// If the operation panics, or if called outside a tokio runtime.
pub async fn to_its_end<T: Send + 'static>(operation: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(operation).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The task was cancelled because the runtime is shutting down, so nothing needs the result.
            Err(_) => std::future::pending().await,
        },
    }
}
