//! A short run of `cargo xtask soak`.

use std::time::Duration;

use millstream_tests::soak::{Plan, run};

use super::crash::number_of;

#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once_under_kills_leaves_what_the_model_says() {
    let seed = number_of("MILLSTREAM_TEST_SEED").unwrap_or_else(rand::random);
    println!("MILLSTREAM_TEST_SEED={seed}");
    let data = tempfile::tempdir().unwrap();
    let plan = Plan { duration: Duration::from_secs(20), seed, data: data.path().to_owned() };
    let summary = run(&plan).await.unwrap();
    println!("{summary}");
    assert!(summary.kills > 1 && summary.checked > 1_000, "{summary}");
}
