//! A full disk, as clients and pipelines see it. What the store does on one is simulated: `simulate/full_disks.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_api::ERROR_TRAILER;
use millstream_broker::grpc::status::to_status;
use millstream_broker::store::{DiskFull, StoreOptions};
use millstream_broker::{BrokerError, Offset};
use millstream_runtime::{Runtime, RuntimeSettings};
use millstream_tests::folder;
use millstream_tests::instance::{Instance, wait_until};
use millstream_tests::workload::open_with;
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

#[test]
fn a_pipeline_waits_for_room_and_goes_on_by_itself() {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let data = folder();
        let free = Arc::new(AtomicU64::new(u64::MAX));
        let of_disk = free.clone();
        let options = StoreOptions {
            free_bytes: Some(Arc::new(move || Ok(of_disk.load(Ordering::SeqCst)))),
            ..StoreOptions::default()
        };
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
        // It reads, and finds no room for what it makes of it.
        let group = instance.broker.groups().get("counting").unwrap();
        let refused = || instance.broker.metrics().refused_disk_full() > 0;
        wait_until("a step was refused", refused).await;
        assert!(instance.records("counts", 0).await.is_empty());
        assert!(group.all_committed().iter().all(|(_, _, at)| *at == Offset::ZERO), "{:?}", group.all_committed());
        free.store(u64::MAX, Ordering::SeqCst);
        instance.caught_up().await;
        let counts = instance.records("counts", 0).await;
        assert_eq!(counts.last().unwrap().value.as_deref(), Some(&b"200"[..]), "every record once");
        instance.stop().await;
    });
}
