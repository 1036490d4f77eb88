//! A full disk as clients and pipelines experience it. `simulate/full_disks.rs` simulates what the store does on one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_api::ERROR_TRAILER;
use millstream_broker::groups::GroupKind;
use millstream_broker::grpc::status::to_status;
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::store::{DiskFull, StoreOptions};
use millstream_broker::{BrokerError, GroupId, Offset, TopicName};
use millstream_runtime::{Runtime, RuntimeSettings};
use millstream_tests::folder;
use millstream_tests::instance::{Instance, wait_until};
use millstream_tests::running::{append, batch_of_one};
use millstream_tests::workload::{open_with, open_with_reserve};
use prometheus_client::registry::Registry;

#[test]
fn a_full_disk_is_told_as_such_and_may_be_tried_again() {
    let error = BrokerError::DiskFull(DiskFull { free_bytes: 10, reserve_bytes: 20, path: "/data".into() });
    let status = to_status(&error);
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.metadata().get(ERROR_TRAILER).unwrap(), "DISK_FULL");
    for said in ["/data", "10 bytes are free", "20 are kept free", "without a restart"] {
        assert!(status.message().contains(said), "{said:?} is not in {:?}", status.message());
    }
}

/// Returns the free bytes of a disk, which a test sets, and options for a store on that disk.
fn disk() -> (Arc<AtomicU64>, StoreOptions) {
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let of_disk = free.clone();
    let free_bytes = Arc::new(move || Ok(of_disk.load(Ordering::SeqCst)));
    (free, StoreOptions { free_bytes: Some(free_bytes), ..StoreOptions::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_committed_on_a_full_disk_as_far_as_there_is_room_for_them() {
    const RESERVE_BYTES: u64 = 40_000;
    let data = folder();
    let (free, options) = disk();
    let broker = open_with_reserve(data.path(), options, RESERVE_BYTES);
    let topic = broker.create_topic(&TopicName::new("t").unwrap(), 1, TopicSettings::default(), false).await.unwrap();
    append(&broker, &topic, 0, batch_of_one(0, "k", Some("v"))).await.unwrap();
    let group = broker.groups().get_or_create(&GroupId::new("g").unwrap(), GroupKind::Consumer).unwrap();
    let partition = topic.partitions()[0].clone();
    let commit =
        async |offset| broker.set_offsets(&group, &[(partition.name().clone(), Offset::new(offset).unwrap())]).await;
    free.store(RESERVE_BYTES - 1, Ordering::SeqCst);
    let refused = append(&broker, &topic, 0, batch_of_one(0, "k", Some("v"))).await.unwrap_err();
    assert!(matches!(refused, BrokerError::DiskFull(_)), "{refused}");
    commit(1).await.expect("the commit may use the reserve");
    free.store(RESERVE_BYTES / 2 - 1, Ordering::SeqCst);
    let refused = commit(0).await.unwrap_err();
    assert!(matches!(refused, BrokerError::DiskFull(_)), "{refused}");
    assert_eq!(group.committed(topic.id(), 0), Offset::new(1));
    // A request that frees space is never refused.
    broker.delete_topic(topic.name()).await.unwrap();
    free.store(u64::MAX, Ordering::SeqCst);
    tokio::task::spawn_blocking(move || broker.stop()).await.unwrap();
}

#[test]
fn a_pipeline_waits_for_room_and_goes_on_by_itself() {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let data = folder();
        let (free, options) = disk();
        let mut registry = Registry::default();
        let broker = open_with(data.path(), options).unwrap();
        let runtime = Runtime::open(broker.clone(), RuntimeSettings::default(), &mut registry).unwrap();
        let instance = Instance { broker, runtime };
        instance.topic("logs", 1).await;
        instance.topic("counts", 1).await;
        instance.push("count").await;
        let values: Vec<String> = (0..200).map(|number| format!("line {number}")).collect();
        let records: Vec<_> = values.iter().map(|value| (Some("k"), value.as_str())).collect();
        instance.produce("logs", 0, &records).await;
        free.store(0, Ordering::SeqCst);
        instance.apply("pipeline: counting\nfrom: logs\nstages:\n- aggregate: count\nto: counts\n").await;
        // The pipeline reads, but there is no space for its output.
        let group = instance.broker.groups().get("counting").unwrap();
        let refused = || instance.broker.metrics().refused_disk_full() > 0;
        wait_until("a step was refused", refused).await;
        assert!(instance.records("counts", 0).await.is_empty());
        assert!(group.all_committed().iter().all(|(_, _, at)| *at == Offset::ZERO), "{:?}", group.all_committed());
        free.store(u64::MAX, Ordering::SeqCst);
        instance.caught_up().await;
        let counts = instance.records("counts", 0).await;
        assert_eq!(counts.last().unwrap().value.as_deref(), Some(&b"200"[..]), "every record must be counted once");
        instance.stop().await;
    });
}
