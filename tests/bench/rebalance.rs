//! Time until all partitions of a group are assigned to their new owners after a member joins, after a member leaves,
//! and after the connection of a member ends without a leave request, as when its process is killed.

use std::time::Instant;

use millstream_client::{Assignment, Client, ConsumerSettings, Position, v1};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, milliseconds};
use millstream_tests::proxy::Proxy;
use millstream_tests::server::Server;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::load;
use crate::plan::Plan;

const NAME: &str = "rebalance";
/// Number of timed joins, leaves and lost connections.
const CHANGES: u64 = 100;
const PARTITIONS: usize = 100;
/// Number of members that stay. With one more there are four, with 25 partitions each.
const MEMBERS: usize = 3;

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    server.client().admin().create_topic("t", Some(PARTITIONS as u32), v1::TopicSettings::default()).await.unwrap();
    load::produce(&server, "t", 100, plan.records(100_000)).await;
    let mut members: Vec<Member> = Vec::new();
    for _ in 0..MEMBERS {
        members.push(Member::join(&server.client()));
    }
    balanced(&mut members).await;
    let (mut joining_ms, mut leaving_ms, mut dying_ms) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..=plan.records(CHANGES) {
        let begun = Instant::now();
        members.push(Member::join(&server.client()));
        balanced(&mut members).await;
        let joined = begun.elapsed();
        // The oldest member leaves.
        let begun = Instant::now();
        let leaving = members.remove(0).leave();
        balanced(&mut members).await;
        let left = begun.elapsed();
        leaving.await.unwrap();
        let proxy = Proxy::start(&server).await;
        members.push(Member::join(&proxy.client()));
        balanced(&mut members).await;
        let dying = members.pop().unwrap();
        proxy.pass_to_nobody();
        let begun = Instant::now();
        proxy.cut();
        balanced(&mut members).await;
        let died = begun.elapsed();
        dying.reading.abort();
        // The first change is a warm-up.
        if change > 0 {
            joining_ms.push(milliseconds(joined));
            leaving_ms.push(milliseconds(left));
            dying_ms.push(milliseconds(died));
        }
    }
    let all = [
        ("a 4th member joins", joining_ms),
        ("1 of 4 members leaves", leaving_ms),
        ("the connection of 1 of 4 members ends", dying_ms),
    ];
    for (what, took) in all {
        let name = format!("{NAME}, {PARTITIONS} partitions, until all are owned after {what}");
        let took = Latency::of(took);
        report.add(Figure::new(format!("{name}, median"), took.p50_ms, Unit::Milliseconds));
        report.add(Figure::new(format!("{name}, longest"), took.max_ms, Unit::Milliseconds));
    }
    for member in members {
        member.leave().await.unwrap();
    }
}

/// A consumer that reads until it is told to leave.
struct Member {
    assignment: watch::Receiver<Assignment>,
    leave: oneshot::Sender<()>,
    reading: JoinHandle<()>,
}

impl Member {
    fn join(client: &Client) -> Self {
        let settings = ConsumerSettings::topic("t").group("g").from(Position::Earliest);
        let mut consumer = client.consumer(settings).unwrap();
        let assignment = consumer.assignments();
        let (leave, mut left) = oneshot::channel();
        let reading = tokio::spawn(async move {
            loop {
                tokio::select! {
                    batch = consumer.next_batch() => drop(batch.unwrap().unwrap()),
                    _ = &mut left => break,
                }
            }
            consumer.close().await.unwrap();
        });
        Self { assignment, leave, reading }
    }

    fn leave(self) -> JoinHandle<()> {
        self.leave.send(()).unwrap();
        self.reading
    }
}

/// Waits until the members own all partitions, distributed as evenly as possible.
async fn balanced(members: &mut [Member]) {
    let (least, most) = (PARTITIONS / members.len(), PARTITIONS.div_ceil(members.len()));
    loop {
        let owned: Vec<usize> =
            members.iter_mut().map(|member| member.assignment.borrow_and_update().partitions.len()).collect();
        if owned.iter().sum::<usize>() == PARTITIONS && owned.iter().all(|owned| (least..=most).contains(owned)) {
            return;
        }
        let changes = members.iter_mut().map(|member| Box::pin(member.assignment.changed()));
        futures::future::select_all(changes).await.0.unwrap();
    }
}
