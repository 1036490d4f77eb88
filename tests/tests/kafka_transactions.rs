//! Transactions over Kafka's protocol: what is committed is seen as a whole, what is aborted is never seen, and what happens
//! to producers that are fenced, too late or killed.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction};
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::fetch_response::AbortedTransaction;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, DescribeProducersRequest, DescribeTransactionsRequest,
    EndTxnRequest, EndTxnResponse, FetchResponse, InitProducerIdRequest, InitProducerIdResponse,
    ListTransactionsRequest, OffsetFetchRequest, TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};
use millstream_record::{BatchBuilder, Compression, TransactionEnd};
use millstream_tests::kafka_client::Client;
use millstream_tests::server::Server;

use crate::cli::{guest_file, wait_until};
use crate::kafka::{batch, create, fetch_request, list_request, produce_request, started, topic, values};

/// The last version of Produce with which partitions must be added to a transaction first, and the one with which they
/// join by their records (KIP-890).
const PRODUCE_V1: i16 = 11;
const PRODUCE_V2: i16 = 12;

fn id(id: &str) -> TransactionalId {
    StrBytes::from_string(id.to_owned()).into()
}

/// A transactional producer.
struct Producer {
    client: Client,
    id: String,
    producer_id: i64,
    epoch: i16,
    /// The next sequence number in partition 0 of topics `t` and `u`.
    next: [i32; 2],
}

impl Producer {
    fn of(server: &Server, id: &str) -> Self {
        Self::with_timeout(server, id, 60_000)
    }

    fn with_timeout(server: &Server, name: &str, timeout_ms: i32) -> Self {
        let mut client = Client::to(server.kafka());
        create(&mut client, "t");
        create(&mut client, "u");
        let given = init(&mut client, name, timeout_ms);
        assert_eq!(given.error_code, 0, "{given:?}");
        Self {
            client,
            id: name.to_owned(),
            producer_id: given.producer_id.0,
            epoch: given.producer_epoch,
            next: [0; 2],
        }
    }

    fn batch(&mut self, of: &'static str, value: &str) -> Bytes {
        let next = &mut self.next[usize::from(of == "u")];
        let mut builder = BatchBuilder::new(Compression::None);
        builder.set_producer(self.producer_id, self.epoch, *next);
        builder.set_transactional(true);
        builder.push(5, Some(value.as_bytes()), Some(value.as_bytes()), []);
        *next += 1;
        builder.finish().unwrap().into_bytes()
    }

    /// Produces one record in the transaction, and returns the error code.
    fn produce(&mut self, of: &'static str, value: &str) -> i16 {
        self.produce_as(PRODUCE_V2, of, value)
    }

    fn produce_as(&mut self, version: i16, of: &'static str, value: &str) -> i16 {
        let request = produce_request(of, 0, self.batch(of, value)).with_transactional_id(Some(id(&self.id)));
        self.client.call(version, &request).responses[0].partition_responses[0].error_code
    }

    fn end_as(&mut self, version: i16, end: TransactionEnd) -> EndTxnResponse {
        let request = EndTxnRequest::default()
            .with_transactional_id(id(&self.id))
            .with_producer_id(self.producer_id.into())
            .with_producer_epoch(self.epoch)
            .with_committed(end == TransactionEnd::Commit);
        self.client.call(version, &request)
    }

    /// Ends the transaction, and takes the next epoch over.
    fn end(&mut self, end: TransactionEnd) -> i16 {
        let ended = self.end_as(5, end);
        if ended.error_code == 0 {
            (self.producer_id, self.epoch, self.next) = (ended.producer_id.0, ended.producer_epoch, [0; 2]);
        }
        ended.error_code
    }

    fn add(&mut self, of: &'static str) -> i16 {
        let of_topic = AddPartitionsToTxnTopic::default().with_name(topic(of)).with_partitions(vec![0]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id(&self.id))
            .with_v3_and_below_producer_id(self.producer_id.into())
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![of_topic]);
        let answer = self.client.call(3, &request);
        answer.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code
    }

    /// Commits an offset of topic `t` for group `g` in the transaction.
    fn commit_offset(&mut self, version: i16, offset: i64) -> i16 {
        let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(offset);
        let of_topic = TxnOffsetCommitRequestTopic::default().with_name(topic("t")).with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id(&self.id))
            .with_group_id(StrBytes::from_static_str("g").into())
            .with_producer_id(self.producer_id.into())
            .with_producer_epoch(self.epoch)
            .with_topics(vec![of_topic]);
        self.client.call(version, &request).topics[0].partitions[0].error_code
    }
}

fn init(client: &mut Client, name: &str, timeout_ms: i32) -> InitProducerIdResponse {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(id(name)))
        .with_transaction_timeout_ms(timeout_ms)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    client.call(5, &request)
}

/// Reads a topic from the beginning. Returns what a reader of committed records sees: those that are stable and not of
/// aborted transactions.
fn committed(client: &mut Client, of: &'static str) -> Vec<String> {
    let (mut seen, mut open, mut next) = (Vec::new(), Vec::new(), 0);
    loop {
        let request = fetch_request(of, next).with_isolation_level(1).with_max_wait_ms(0);
        let answer: FetchResponse = client.call(12, &request);
        let partition = &answer.responses[0].partitions[0];
        for batch in millstream_record::split_batches(partition.records.clone().unwrap()) {
            let batch = batch.unwrap();
            let begins = |of: &&AbortedTransaction| of.first_offset == batch.base_offset();
            open.extend(partition.aborted_transactions.iter().flatten().filter(begins).map(|of| of.producer_id.0));
            if batch.is_control() {
                open.retain(|id| *id != batch.producer_id());
            } else if !(batch.is_transactional() && open.contains(&batch.producer_id())) {
                seen.extend(values(batch.as_bytes().clone()));
            }
            next = batch.next_offset();
        }
        if next >= partition.last_stable_offset {
            return seen;
        }
    }
}

/// Returns what a consumer over gRPC sees of a topic.
fn consumed(server: &Server, of: &str) -> Vec<String> {
    let out = server.run(&["consume", of, "--from", "earliest", "--until-end"]).ok();
    out.lines().map(str::to_owned).collect()
}

fn offsets(client: &mut Client, of: &'static str) -> (i64, i64) {
    let end = |client: &mut Client, isolation: i8| {
        let request = list_request(of, -1).with_isolation_level(isolation);
        client.call(5, &request).topics[0].partitions[0].offset
    };
    (end(client, 1), end(client, 0))
}

/// Returns the committed offset of group `g` in topic `t`, or the error code of a reader that waits for transactions.
fn committed_offset(client: &mut Client) -> Result<i64, i16> {
    let of_topic = OffsetFetchRequestTopics::default().with_name(topic("t")).with_partition_indexes(vec![0]);
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(StrBytes::from_static_str("g").into())
        .with_topics(Some(vec![of_topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![group]).with_require_stable(true);
    let answer = client.call(8, &request);
    let partition = &answer.groups[0].topics[0].partitions[0];
    if partition.error_code == 0 { Ok(partition.committed_offset) } else { Err(partition.error_code) }
}

/// Asks one version of an API of transactions, and checks the answer.
pub(crate) fn answers(client: &mut Client, key: i16, version: i16, unique: &str) {
    create(client, "t");
    let of = init(client, unique, 60_000);
    let ids = |request: AddPartitionsToTxnRequest| {
        request
            .with_v3_and_below_transactional_id(id(unique))
            .with_v3_and_below_producer_id(of.producer_id)
            .with_v3_and_below_producer_epoch(of.producer_epoch)
    };
    let of_topic = || vec![AddPartitionsToTxnTopic::default().with_name(topic("t")).with_partitions(vec![0])];
    match key {
        AddPartitionsToTxnRequest::KEY => {
            if version < 4 {
                let request = ids(AddPartitionsToTxnRequest::default()).with_v3_and_below_topics(of_topic());
                let answer = client.call(version, &request);
                let result = &answer.results_by_topic_v3_and_below[0].results_by_partition[0];
                assert_eq!(result.partition_error_code, 0);
            } else {
                let transaction = |verify_only: bool| {
                    AddPartitionsToTxnTransaction::default()
                        .with_transactional_id(id(unique))
                        .with_producer_id(of.producer_id)
                        .with_producer_epoch(of.producer_epoch)
                        .with_verify_only(verify_only)
                        .with_topics(of_topic())
                };
                for (verify_only, code) in [(true, ResponseError::TransactionAbortable.code()), (false, 0), (true, 0)] {
                    let request =
                        AddPartitionsToTxnRequest::default().with_transactions(vec![transaction(verify_only)]);
                    let answer = client.call(version, &request);
                    let result = &answer.results_by_transaction[0].topic_results[0].results_by_partition[0];
                    assert_eq!(result.partition_error_code, code);
                }
            }
        }
        AddOffsetsToTxnRequest::KEY => {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id(unique))
                .with_producer_id(of.producer_id)
                .with_producer_epoch(of.producer_epoch)
                .with_group_id(StrBytes::from_static_str("of a transaction").into());
            assert_eq!(client.call(version, &request).error_code, 0);
            let fenced = if version < 2 { ResponseError::InvalidProducerEpoch } else { ResponseError::ProducerFenced };
            assert_eq!(client.call(version, &request.with_producer_epoch(9)).error_code, fenced.code());
        }
        TxnOffsetCommitRequest::KEY => {
            let group = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id(unique))
                .with_producer_id(of.producer_id)
                .with_producer_epoch(of.producer_epoch)
                .with_group_id(StrBytes::from_static_str("of a transaction").into());
            client.call(3, &group);
            let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(1);
            let of_topic = TxnOffsetCommitRequestTopic::default().with_name(topic("t"));
            let request = TxnOffsetCommitRequest::default()
                .with_transactional_id(id(unique))
                .with_group_id(StrBytes::from_static_str("of a transaction").into())
                .with_producer_id(of.producer_id)
                .with_producer_epoch(of.producer_epoch)
                .with_topics(vec![of_topic.with_partitions(vec![partition])]);
            assert_eq!(client.call(version, &request).topics[0].partitions[0].error_code, 0);
        }
        EndTxnRequest::KEY => {
            client.call(3, &ids(AddPartitionsToTxnRequest::default()).with_v3_and_below_topics(of_topic()));
            let request = EndTxnRequest::default()
                .with_transactional_id(id(unique))
                .with_producer_id(of.producer_id)
                .with_producer_epoch(of.producer_epoch)
                .with_committed(true);
            let ended = client.call(version, &request);
            assert_eq!(ended.error_code, 0);
            if version >= 5 {
                assert_eq!((ended.producer_id, ended.producer_epoch), (of.producer_id, of.producer_epoch + 1));
            }
            // The answer was lost.
            assert_eq!(client.call(version, &request), ended);
        }
        DescribeProducersRequest::KEY => {
            let wanted = TopicRequest::default().with_name(topic("t")).with_partition_indexes(vec![0, 9]);
            let answer = client.call(version, &DescribeProducersRequest::default().with_topics(vec![wanted]));
            let codes: Vec<_> = answer.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
            assert_eq!(codes, [0, ResponseError::UnknownTopicOrPartition.code()]);
        }
        DescribeTransactionsRequest::KEY => {
            client.call(3, &ids(AddPartitionsToTxnRequest::default()).with_v3_and_below_topics(of_topic()));
            let wanted = vec![id(unique), id("unknown")];
            let request = DescribeTransactionsRequest::default().with_transactional_ids(wanted);
            let states = client.call(version, &request).transaction_states;
            assert_eq!((states[0].error_code, &*states[0].transaction_state), (0, "Ongoing"));
            assert_eq!((states[0].transaction_timeout_ms, &**states[0].topics[0].topic), (60_000, "t"));
            assert_eq!(states[1].error_code, ResponseError::TransactionalIdNotFound.code());
        }
        ListTransactionsRequest::KEY => {
            let listed = client.call(version, &ListTransactionsRequest::default().with_duration_filter(-1));
            let own = listed.transaction_states.iter().find(|state| *state.transactional_id == *id(unique)).unwrap();
            assert_eq!(&*own.transaction_state, "Empty");
            let strange = ListTransactionsRequest::default()
                .with_duration_filter(-1)
                .with_state_filters(vec![StrBytes::from_static_str("Strange"), StrBytes::from_static_str("Ongoing")]);
            let listed = client.call(version, &strange);
            assert_eq!(listed.unknown_state_filters.len(), 1);
            assert!(listed.transaction_states.iter().all(|state| &*state.transaction_state == "Ongoing"));
        }
        other => crate::kafka_admin::answers(client, other, version, unique),
    }
}

#[test]
fn a_transaction_is_seen_as_a_whole_or_not_at_all() {
    let (server, _data) = started();
    let mut producer = Producer::of(&server, "tx");
    let mut reader = Client::to(server.kafka());
    reader.call(9, &produce_request("t", 0, batch(0, "before")));
    assert_eq!((producer.produce("t", "a"), producer.produce("u", "a")), (0, 0));
    reader.call(9, &produce_request("t", 0, batch(0, "beside")));
    // Nothing after the beginning of an open transaction is stable.
    assert_eq!(offsets(&mut reader, "t"), (1, 3));
    assert_eq!(committed(&mut reader, "t"), ["before"]);
    assert_eq!(consumed(&server, "t"), ["before"]);
    assert_eq!(producer.end(TransactionEnd::Commit), 0);
    assert_eq!(offsets(&mut reader, "t"), (4, 4));
    assert_eq!(committed(&mut reader, "t"), ["before", "a", "beside"]);
    assert_eq!(consumed(&server, "t"), ["before", "a", "beside"]);
    assert_eq!(consumed(&server, "u"), ["a"]);

    // An aborted one is never seen.
    assert_eq!((producer.produce("t", "b"), producer.produce("u", "b"), producer.produce("t", "c")), (0, 0, 0));
    assert_eq!(producer.end(TransactionEnd::Abort), 0);
    assert_eq!((producer.produce("t", "d"), producer.end(TransactionEnd::Commit)), (0, 0));
    assert_eq!(committed(&mut reader, "t"), ["before", "a", "beside", "d"]);
    assert_eq!(consumed(&server, "t"), ["before", "a", "beside", "d"]);
    assert_eq!((consumed(&server, "u"), committed(&mut reader, "u")), (vec!["a".to_owned()], vec!["a".to_owned()]));
    // A reader that asks for everything sees it.
    let all: FetchResponse = reader.call(12, &fetch_request("t", 0));
    let all = all.responses[0].partitions[0].records.clone().unwrap();
    let plain = millstream_record::split_batches(all).map(Result::unwrap).filter(|batch| !batch.is_control());
    assert_eq!(
        plain.flat_map(|batch| values(batch.into_bytes())).collect::<Vec<_>>(),
        ["before", "a", "beside", "b", "c", "d"]
    );
}

#[test]
fn both_versions_of_transactions_are_served() {
    let (server, _data) = started();
    let mut producer = Producer::of(&server, "tx");
    let mut reader = Client::to(server.kafka());
    // Without being added, a partition is not in the transaction.
    assert_eq!(producer.produce_as(PRODUCE_V1, "t", "lost"), ResponseError::InvalidTxnState.code());
    producer.next = [0; 2];
    assert_eq!((producer.add("t"), producer.produce_as(PRODUCE_V1, "t", "a")), (0, 0));
    assert_eq!(producer.end_as(3, TransactionEnd::Commit).error_code, 0);
    // Version 1 keeps the epoch, and the sequence numbers go on.
    assert_eq!((producer.add("t"), producer.produce_as(PRODUCE_V1, "t", "b")), (0, 0));
    assert_eq!(producer.end_as(3, TransactionEnd::Abort).error_code, 0);
    assert_eq!((producer.add("t"), producer.produce_as(PRODUCE_V1, "t", "c")), (0, 0));
    assert_eq!(producer.end_as(3, TransactionEnd::Commit).error_code, 0);
    assert_eq!(committed(&mut reader, "t"), ["a", "c"]);
    // There is nothing to end, and the outcome was another.
    assert_eq!(producer.end_as(3, TransactionEnd::Abort).error_code, ResponseError::InvalidTxnState.code());
}

#[test]
fn a_producer_that_was_replaced_is_fenced() {
    let (server, _data) = started();
    let mut zombie = Producer::of(&server, "tx");
    assert_eq!(zombie.produce("t", "of the zombie"), 0);
    let mut producer = Producer::of(&server, "tx");
    assert_eq!((producer.producer_id, producer.epoch), (zombie.producer_id, zombie.epoch + 1));
    assert_eq!(zombie.produce("t", "too late"), ResponseError::InvalidProducerEpoch.code());
    assert_eq!(zombie.end(TransactionEnd::Commit), ResponseError::ProducerFenced.code());
    assert_eq!(zombie.commit_offset(5, 7), ResponseError::ProducerFenced.code());
    assert_eq!((producer.produce("t", "mine"), producer.end(TransactionEnd::Commit)), (0, 0));
    assert_eq!(consumed(&server, "t"), ["mine"]);
    let mut client = Client::to(server.kafka());
    let refused = |client: &mut Client, timeout_ms: i32| init(client, "other", timeout_ms).error_code;
    let timeout = ResponseError::InvalidTransactionTimeout.code();
    assert_eq!((refused(&mut client, 0), refused(&mut client, 86_400_000)), (timeout, timeout));
    let stranger = EndTxnRequest::default().with_transactional_id(id("nobody")).with_producer_id(0.into());
    assert_eq!(client.call(5, &stranger).error_code, ResponseError::InvalidProducerIdMapping.code());
}

#[test]
fn a_transaction_that_is_open_for_too_long_is_aborted() {
    let (server, _data) = started();
    let mut producer = Producer::with_timeout(&server, "tx", 300);
    assert_eq!((producer.produce("t", "a"), producer.commit_offset(5, 3)), (0, 0));
    let unstable = ResponseError::UnstableOffsetCommit.code();
    assert_eq!(committed_offset(&mut producer.client), Err(unstable));
    let mut reader = Client::to(server.kafka());
    wait_until("the transaction is aborted", || offsets(&mut reader, "t") == (2, 2));
    assert!(consumed(&server, "t").is_empty());
    assert_eq!(committed_offset(&mut reader), Ok(-1));
    assert_eq!(producer.produce("t", "too late"), ResponseError::InvalidProducerEpoch.code());
    assert_eq!(producer.end(TransactionEnd::Commit), ResponseError::ProducerFenced.code());
}

#[test]
fn restarts_give_a_transaction_no_more_time() {
    let (mut server, _data) = started();
    let mut producer = Producer::with_timeout(&server, "tx", 2_000);
    assert_eq!((producer.produce("t", "a"), producer.produce("u", "a"), producer.commit_offset(5, 3)), (0, 0, 0));
    wait_until("the transaction is aborted", || {
        server.kill();
        server.restart();
        std::thread::sleep(Duration::from_millis(300));
        offsets(&mut Client::to(server.kafka()), "t") == (2, 2)
    });
    assert_eq!(committed_offset(&mut Client::to(server.kafka())), Ok(-1));
}

#[test]
fn a_transaction_of_which_nothing_was_stored_can_be_aborted_after_a_kill() {
    let (mut server, _data) = started();
    let mut producer = Producer::of(&server, "tx");
    assert_eq!((producer.add("t"), producer.produce_as(PRODUCE_V1, "t", "a")), (0, 0));
    assert_eq!((producer.end_as(3, TransactionEnd::Commit).error_code, producer.add("t")), (0, 0));
    server.kill();
    server.restart();
    producer.client = Client::to(server.kafka());
    assert_eq!(producer.end_as(3, TransactionEnd::Abort).error_code, 0);
    assert_eq!((producer.add("t"), producer.produce_as(PRODUCE_V1, "t", "b")), (0, 0));
    assert_eq!(producer.end_as(3, TransactionEnd::Commit).error_code, 0);
    assert_eq!(consumed(&server, "t"), ["a", "b"]);
}

#[test]
fn transactions_survive_a_kill() {
    let (mut server, _data) = started();
    let mut producer = Producer::of(&server, "tx");
    assert_eq!((producer.produce("t", "committed"), producer.end(TransactionEnd::Commit)), (0, 0));
    assert_eq!((producer.produce("t", "aborted"), producer.end(TransactionEnd::Abort)), (0, 0));
    assert_eq!((producer.produce("t", "open"), producer.produce("u", "open"), producer.commit_offset(5, 2)), (0, 0, 0));
    server.kill();
    server.restart();
    let mut reader = Client::to(server.kafka());
    assert_eq!((offsets(&mut reader, "t"), offsets(&mut reader, "u")), ((4, 5), (0, 1)));
    assert_eq!(consumed(&server, "t"), ["committed"]);
    assert_eq!(committed_offset(&mut reader), Err(ResponseError::UnstableOffsetCommit.code()));
    // The producer goes on as if nothing had been.
    producer.client = Client::to(server.kafka());
    assert_eq!((producer.produce("t", "and more"), producer.end(TransactionEnd::Commit)), (0, 0));
    assert_eq!(committed(&mut reader, "t"), ["committed", "open", "and more"]);
    assert_eq!(consumed(&server, "t"), ["committed", "open", "and more"]);
    assert_eq!(consumed(&server, "u"), ["open"]);
    assert_eq!(committed_offset(&mut reader), Ok(2));
    server.kill();
    server.restart();
    assert_eq!(committed(&mut Client::to(server.kafka()), "t"), ["committed", "open", "and more"]);
    assert_eq!(consumed(&server, "t"), ["committed", "open", "and more"]);
    // A deleted topic takes its part of a transaction with it.
    producer.client = Client::to(server.kafka());
    assert_eq!((producer.produce("t", "x"), producer.produce("u", "x")), (0, 0));
    server.run(&["topic", "delete", "u"]).ok();
    assert_eq!(producer.end(TransactionEnd::Commit), 0);
    assert_eq!(consumed(&server, "t").last().unwrap(), "x");
}

#[test]
fn offsets_of_a_transaction_take_effect_with_it() {
    let (server, _data) = started();
    let mut producer = Producer::of(&server, "tx");
    let mut reader = Client::to(server.kafka());
    // In version 1, the group must be added first.
    assert_eq!(producer.commit_offset(3, 1), ResponseError::InvalidTxnState.code());
    assert_eq!(producer.commit_offset(5, 1), 0);
    assert_eq!(committed_offset(&mut reader), Err(ResponseError::UnstableOffsetCommit.code()));
    assert_eq!(producer.end(TransactionEnd::Abort), 0);
    assert_eq!(committed_offset(&mut reader), Ok(-1));
    assert_eq!(
        (producer.commit_offset(5, 4), producer.produce("u", "a"), producer.end(TransactionEnd::Commit)),
        (0, 0, 0)
    );
    assert_eq!(committed_offset(&mut reader), Ok(4));
}

#[test]
fn a_pipeline_behind_a_transactional_producer_counts_committed_records_only() {
    let (mut server, _data) = started();
    let mut producer = Producer::of(&server, "tx");
    server.run(&["module", "push", "words", &guest_file("words")]).ok();
    server.run(&["module", "push", "count", &guest_file("count")]).ok();
    let yaml = "pipeline: word-counts\nfrom: t\nstages:\n  - map: words\n  - aggregate: count\nto: counts\n";
    server.run_with_input(&["apply", "-f", "-"], yaml).ok();
    assert_eq!((producer.produce("t", "one two"), producer.end(TransactionEnd::Commit)), (0, 0));
    assert_eq!((producer.produce("t", "two aborted"), producer.end(TransactionEnd::Abort)), (0, 0));
    assert_eq!(producer.produce("t", "two three"), 0);
    // The pipeline waits for the end of the open transaction, also across a kill.
    let count = |server: &Server, word: &str| server.run(&["state", "get", "word-counts", word]).out.trim().to_owned();
    wait_until("the first transaction is counted", || count(&server, "two").ends_with('1'));
    server.kill();
    server.restart();
    assert_eq!((count(&server, "three"), count(&server, "aborted")), (String::new(), String::new()));
    producer.client = Client::to(server.kafka());
    assert_eq!(producer.end(TransactionEnd::Commit), 0);
    wait_until("the last transaction is counted", || count(&server, "three").ends_with('1'));
    assert!(count(&server, "two").ends_with('2'), "{}", count(&server, "two"));
    // What the pipeline wrote is there for Kafka's clients.
    let counts = committed(&mut producer.client, "counts");
    assert!(counts.len() >= 4, "{counts:?}");
}
