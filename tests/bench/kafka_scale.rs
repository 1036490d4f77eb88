//! Many connections, partitions and groups over Kafka's protocol, by turns with Apache Kafka. A client that does nothing by
//! itself sends the requests that consumers send, so that only the servers are measured.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, CreateTopicsRequest, FindCoordinatorRequest, MetadataRequest,
    MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use millstream_tests::kafka_client::Client;
use millstream_tests::kafka_member::{Beating, Member, assign_all, join_all, text};
use millstream_tests::measure::kafka::{Flushing, Jars, Node, VERSION};
use millstream_tests::measure::process::resident_bytes;
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{median, milliseconds};
use millstream_tests::measure::turns::order;
use millstream_tests::root;
use millstream_tests::server::Server;

use crate::kafka::{self, CONTENDERS, Contender};
use crate::plan::Plan;

const NAME: &str = "kafka scale";
const ROUNDS: usize = 3;
const CONNECTIONS: u64 = 1_000;
const TOPICS: u64 = 100;
const PARTITIONS: i32 = 100;
/// Kafka refuses 10,000 partitions in one request.
const TOPICS_A_REQUEST: usize = 50;
const GROUPS: u64 = 1_000;
/// Number of members of the group that is rebalanced. One more joins.
const MEMBERS: u64 = 100;
/// How often the metadata is asked for in a round.
const ASKED: usize = 20;

/// What is measured in a round, in milliseconds, or in megabytes.
const FIGURES: [(&str, Unit); 9] = [
    ("10,000 partitions created with 50 topics a request, until all are known", Unit::Milliseconds),
    ("metadata of 10,000 partitions", Unit::Milliseconds),
    ("1,000 connections opened, each with ApiVersions and Metadata", Unit::Milliseconds),
    ("1,000 groups, each with a member that joins and is assigned", Unit::Milliseconds),
    ("1,000 heartbeats, one for each group", Unit::Milliseconds),
    ("1,000 commits of offsets, one for each group", Unit::Milliseconds),
    ("a 101st member joins a group, until all are assigned, classic protocol", Unit::Milliseconds),
    ("a 101st member joins a group, until all are assigned, consumer protocol", Unit::Milliseconds),
    ("memory of the server after all this", Unit::Megabytes),
];

type Round = [f64; FIGURES.len()];

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    if !plan.wants_any(NAME, &FIGURES.map(|(name, _)| name)) {
        return;
    }
    // Each connection is a file of this process.
    if let Err(error) = rlimit::increase_nofile_limit(2 * CONNECTIONS + 1_000) {
        return report.leave_out(NAME, &format!("cannot open {CONNECTIONS} connections: {error}"));
    }
    let jars = Jars::prepare(&root().join("target/kafka"));
    if let Err(error) = &jars {
        report.leave_out(&format!("{NAME}: Apache Kafka {VERSION}"), &format!("{error:#}"));
    }
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds(ROUNDS) {
        for (side, contender) in order(round, &[(0, CONTENDERS[0]), (1, CONTENDERS[1])]) {
            let measured = match (contender, &jars) {
                (Contender::Ours, _) => ours(plan),
                (Contender::Kafka(_), Ok(jars)) => theirs(plan, jars),
                (Contender::Kafka(_), Err(_)) => continue,
            };
            match measured {
                Ok(round) => rounds[side].push(round),
                Err(error) => return report.leave_out(&format!("{NAME}, {}", contender.name()), &format!("{error:#}")),
            }
        }
    }
    let [ours, theirs] = rounds;
    for (at, (name, unit)) in FIGURES.into_iter().enumerate() {
        let of = |rounds: &[Round]| median(rounds.iter().map(|round| round[at]).collect());
        let mut figure = Figure::new(format!("{NAME}, {name}"), of(&ours), unit);
        if !theirs.is_empty() {
            figure = figure.beside(kafka::name(Flushing::PageCache), of(&theirs));
        }
        report.add(figure);
    }
}

fn ours(plan: &Plan) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let server = Server::start_with(folder.path(), &["--kafka-address", "127.0.0.1:0"]);
    measure(plan, server.kafka(), server.pid())
}

fn theirs(plan: &Plan, jars: &Jars) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let node = Node::start(jars, folder.path())?;
    measure(plan, node.address(), node.pid())
}

/// Measures a server without data.
fn measure(plan: &Plan, address: &str, pid: u32) -> Result<Round> {
    let (topics, connections) = (plan.records(TOPICS), plan.records(CONNECTIONS) as usize);
    let (groups, members) = (plan.records(GROUPS), plan.records(MEMBERS));
    let partitions = topics as usize * PARTITIONS as usize;
    let mut client = Client::to(address);
    create(&mut client, &["t".to_owned()], PARTITIONS)?;
    coordinates(&mut client, address)?;
    let created = timed(|| {
        let names: Vec<String> = (0..topics).map(|topic| format!("topic-{topic}")).collect();
        names.chunks(TOPICS_A_REQUEST).try_for_each(|names| create(&mut client, names, PARTITIONS))?;
        while known(&mut client) < partitions {}
        Ok(())
    })?;
    let mut asked = Vec::new();
    for _ in 0..ASKED {
        asked.push(timed(|| {
            let known = known(&mut client);
            ensure!(known >= partitions, "metadata has {known} of {partitions} partitions");
            Ok(())
        })?);
    }
    let mut opened = Vec::new();
    let connected = timed(|| {
        opened.extend((0..connections).map(|_| Client::to(address)));
        let versions = ApiVersionsRequest::default()
            .with_client_software_name(text("millstream-bench"))
            .with_client_software_version(text("1"));
        opened.iter_mut().for_each(|client| client.send(3, 3, &versions));
        for client in &mut opened {
            let answer = client.answer::<ApiVersionsResponse>(3, 3);
            check("ApiVersions", answer.error_code)?;
        }
        let wanted = MetadataRequestTopic::default().with_name(Some(topic()));
        let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
        opened.iter_mut().for_each(|client| client.send(12, 12, &request));
        for client in &mut opened {
            let answer = client.answer::<MetadataResponse>(12, 12);
            check("Metadata", answer.topics[0].error_code)?;
        }
        Ok(())
    })?;
    drop(opened);
    let mut alone: Vec<Member> = (0..groups).map(|group| Member::of(address, &format!("g-{group}"))).collect();
    let joined = timed(|| {
        alone.iter_mut().for_each(Member::send_join);
        for member in &mut alone {
            let answer = member.joined();
            check("JoinGroup", answer.error_code)?;
        }
        for member in &mut alone {
            let own = member.id.clone();
            member.send_sync(&[own]);
        }
        for member in &mut alone {
            let answer = member.synced();
            check("SyncGroup", answer.error_code)?;
        }
        Ok(())
    })?;
    let beaten = timed(|| {
        for member in &mut alone {
            check("Heartbeat", member.heartbeat())?;
        }
        Ok(())
    })?;
    let committed = timed(|| {
        for member in &mut alone {
            member.send_commit(1);
        }
        for member in &mut alone {
            check("OffsetCommit", member.committed())?;
        }
        Ok(())
    })?;
    let classic = classic(address, members)?;
    let consumer = consumer(address, members)?;
    let memory = resident_bytes(pid) as f64 / 1e6;
    Ok([created, median(asked), connected, joined, beaten, committed, classic, consumer, memory])
}

/// Returns an error if a request was answered with one.
fn check(api: &str, code: i16) -> Result<()> {
    ensure!(code == 0, "{api} is answered with error {code}");
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(milliseconds(begun.elapsed()))
}

/// Returns how many partitions the metadata has, of all topics.
fn known(client: &mut Client) -> usize {
    let known = client.call(12, &MetadataRequest::default().with_topics(None));
    known.topics.iter().map(|topic| topic.partitions.len()).sum()
}

fn topic() -> TopicName {
    text("t").into()
}

fn create(client: &mut Client, names: &[String], partitions: i32) -> Result<()> {
    let topic = |name: &String| {
        let name: StrBytes = text(name);
        CreatableTopic::default().with_name(name.into()).with_num_partitions(partitions).with_replication_factor(1)
    };
    let request = CreateTopicsRequest::default().with_timeout_ms(60_000).with_topics(names.iter().map(topic).collect());
    for topic in client.call(5, &request).topics {
        check("CreateTopics", topic.error_code)?;
    }
    Ok(())
}

/// Waits until the server coordinates groups, for which Kafka creates a topic.
fn coordinates(client: &mut Client, address: &str) -> Result<()> {
    let request = FindCoordinatorRequest::default().with_key(text("g"));
    let mut member = Beating::of(address, "coordinated", "first");
    for _ in 0..600 {
        if client.call(3, &request).error_code == 0 && member.beat().error_code == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("nobody coordinates groups within a minute")
}

/// Lets one more member join a group of the classic protocol. The others learn of it at once.
fn classic(address: &str, members: u64) -> Result<f64> {
    let mut all: Vec<Member> = (0..members).map(|_| Member::of(address, "classic")).collect();
    // The first group of members may be joined in several generations.
    let (first, others) = all.split_first_mut().context("the group has a member")?;
    join_all(std::slice::from_mut(first));
    others.iter_mut().for_each(Member::send_join);
    first.beat_until(ResponseError::RebalanceInProgress.code());
    first.send_join();
    assign_all(&mut all);
    let mut new = Member::of(address, "classic");
    timed(|| {
        new.send_join();
        for member in &mut all {
            member.beat_until(ResponseError::RebalanceInProgress.code());
            member.send_join();
        }
        all.push(new);
        assign_all(&mut all);
        Ok(())
    })
}

/// Lets one more member join a group of the consumer protocol, whose members send heartbeats one after the other.
fn consumer(address: &str, members: u64) -> Result<f64> {
    let member = |number: u64| Beating::of(address, "consumer", &format!("member-{number}"));
    let mut all: Vec<_> = (0..members).map(member).collect();
    settle(&mut all)?;
    all.push(member(members));
    timed(|| settle(&mut all))
}

/// Lets members send heartbeats until they own all partitions in the same epoch.
fn settle(members: &mut [Beating]) -> Result<()> {
    for _ in 0..1_000 {
        let mut owned = 0;
        for member in &mut *members {
            check("ConsumerGroupHeartbeat", member.beat().error_code)?;
            owned += member.partitions().len();
        }
        if owned == PARTITIONS as usize && members.iter().all(|member| member.epoch == members[0].epoch) {
            return Ok(());
        }
    }
    bail!("the group does not come to rest")
}
