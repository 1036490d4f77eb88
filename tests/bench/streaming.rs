//! Produces and consumes over gRPC against a real server with the Rust client, alternating with Apache Kafka if Java
//! and Maven are available.

use millstream_client::v1;
use millstream_tests::measure::kafka::{Flushing, Produced as KafkaProduced, VERSION};
use millstream_tests::measure::report::{Figure, Report, Unit};
use millstream_tests::measure::samples::{Latency, median};
use millstream_tests::measure::turns::order;
use millstream_tests::server::Server;

use crate::kafka::{self, CONTENDERS, Contender, Kafka};
use crate::load::{self, Consumed, Produced, median_of};
use crate::plan::Plan;

const ROUNDS: usize = 3;

/// Size of the values that are read from the tail, in bytes. The server has them in memory.
const TAIL_BYTES: u64 = 40_000_000;

/// A record size and a number of partitions.
struct Case {
    name: String,
    value_bytes: usize,
    partitions: u32,
    records: u64,
}

impl Case {
    /// Returns which rate is usually compared: records per second for small records, or bytes per second for large
    /// records.
    fn counts_records(&self) -> bool {
        self.value_bytes == 100
    }

    /// Adds the rate in records and in bytes of values. The rate that is usually compared has the target.
    fn add_rate(&self, report: &mut Report, name: &str, records_per_s: f64, kafka: &[(String, f64)], least: f64) {
        let megabytes = |records: f64| records * self.value_bytes as f64 / 1e6;
        let mut records = Figure::new(name, records_per_s, Unit::RecordsPerSecond);
        let mut bytes = Figure::new(name, megabytes(records_per_s), Unit::MegabytesPerSecond);
        for (kafka, rate) in kafka {
            records = records.beside(kafka, *rate);
            bytes = bytes.beside(kafka, megabytes(*rate));
        }
        let counts_records = self.counts_records();
        report.add(if counts_records { records.at_least(least) } else { records });
        report.add(if counts_records { bytes } else { bytes.at_least(least) });
    }
}

pub(crate) async fn run(plan: &Plan, report: &mut Report) {
    for (size, value_bytes, records) in [("100 B", 100, 5_000_000), ("1 KiB", 1_024, 600_000)] {
        for (partitions, of) in [(1, "1 partition"), (8, "8 partitions")] {
            let name = format!("{size}, {of}");
            let case = Case { name, value_bytes, partitions, records: plan.records(records) };
            if plan.wants(&format!("produce, {}", case.name)) || plan.wants(&format!("consume, {}", case.name)) {
                case.measure(plan, report).await;
            }
        }
    }
}

/// The measurements of Kafka, by flush setting.
#[derive(Default)]
struct OfKafka {
    page_cache: Vec<KafkaProduced>,
    flushed: Vec<KafkaProduced>,
    consumed: Vec<f64>,
}

impl OfKafka {
    fn produced(&self) -> impl Iterator<Item = (String, &Vec<KafkaProduced>)> {
        let both = [(Flushing::PageCache, &self.page_cache), (Flushing::EveryMessage, &self.flushed)];
        both.into_iter().filter(|(_, rounds)| !rounds.is_empty()).map(|(of, rounds)| (kafka::name(of), rounds))
    }

    fn medians(&self, figure: fn(&KafkaProduced) -> f64) -> Vec<(String, f64)> {
        self.produced().map(|(name, rounds)| (name, median_of(rounds, figure))).collect()
    }
}

impl Case {
    async fn measure(&self, plan: &Plan, report: &mut Report) {
        let (folder, kafka_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut server = Server::start(folder.path());
        let mut kafka = Kafka::start(kafka_folder.path(), report);
        let rounds = plan.rounds(ROUNDS);
        // Warm-up.
        self.produce_ours(&server, "warm-up", self.records / 5).await;
        let (mut ours, mut of_kafka) = (Vec::new(), OfKafka::default());
        for round in 0..rounds {
            for contender in order(round, &CONTENDERS) {
                let topic = contender.topic(round);
                match contender {
                    Contender::Ours => ours.push(self.produce_ours(&server, &topic, self.records).await),
                    Contender::Kafka(flushing) => {
                        let load = kafka::load(&topic, self.value_bytes, self.records);
                        let produced = kafka.produce(self.partitions, flushing, load, report).await;
                        match flushing {
                            Flushing::PageCache => of_kafka.page_cache.extend(produced),
                            Flushing::EveryMessage => of_kafka.flushed.extend(produced),
                        }
                    }
                }
            }
        }
        self.add_produced(report, &ours, &of_kafka);

        let name = format!("consume, {}", self.name);
        let tail = (TAIL_BYTES / self.value_bytes as u64).min(self.records) / u64::from(self.partitions);
        let mut from_tail = Vec::new();
        for _ in 0..rounds {
            let last = Contender::Ours.topic(rounds - 1);
            from_tail.push(load::consume_tail(&server.client(), &last, tail).await);
        }
        let least = if self.counts_records() { 2e6 } else { 400.0 };
        self.add_rate(report, &format!("{name}, from the tail"), median(from_tail), &[], least);

        load::push_to_segments(&server).await;
        // A restart clears the server's memory.
        assert!(server.terminate().success());
        server.restart();
        kafka.restart_cold(report);
        let mut from_start = Vec::new();
        for round in 0..rounds {
            for contender in order(round, &CONTENDERS) {
                let topic = contender.topic(round);
                match contender {
                    Contender::Ours => {
                        from_start.push(load::consume_cold(&server, folder.path(), &topic, self.records).await);
                    }
                    // Both flush settings store the same data, so only one is read.
                    Contender::Kafka(Flushing::PageCache) => {
                        of_kafka.consumed.extend(kafka.consume_cold(&topic, self.records, report));
                    }
                    Contender::Kafka(Flushing::EveryMessage) => {}
                }
            }
        }
        self.add_consumed(report, &format!("{name}, from the start, cold"), &from_start, &of_kafka, least);
    }

    async fn produce_ours(&self, server: &Server, topic: &str, records: u64) -> Produced {
        let settings = v1::TopicSettings::default();
        server.client().admin().create_topic(topic, Some(self.partitions), settings).await.unwrap();
        load::produce(server, topic, self.value_bytes, records).await
    }

    fn add_produced(&self, report: &mut Report, ours: &[Produced], kafka: &OfKafka) {
        let name = format!("produce, {}", self.name);
        let least = if self.counts_records() { 1e6 } else { 150.0 };
        let beside = kafka.medians(|produced| produced.records_per_s);
        self.add_rate(report, &name, median_of(ours, |of| of.records_per_s), &beside, least);
        let mut add = |what: &str, value: f64, of_kafka: fn(&KafkaProduced) -> f64| {
            let figure = Figure::new(format!("{name}, {what}"), value, Unit::MicrosecondsPerRecord);
            let beside = kafka.medians(of_kafka).into_iter();
            report.add(beside.fold(figure, |figure, (kafka, value)| figure.beside(kafka, value)));
        };
        let server_cpu = median_of(ours, |of| of.server_cpu_us);
        add("server CPU, sealing included", server_cpu, |of| of.server_cpu_us);
        let client_cpu = median_of(ours, |of| of.client_cpu_us);
        add("client CPU", client_cpu, |of| of.client_cpu_us);
        let latencies: Vec<Latency> = ours.iter().map(|of| of.latency).collect();
        let of_kafka: Vec<(String, Vec<Latency>)> =
            kafka.produced().map(|(name, rounds)| (name, rounds.iter().map(|of| of.latency).collect())).collect();
        let beside: Vec<_> = of_kafka.iter().map(|(name, rounds)| (name.as_str(), rounds.as_slice())).collect();
        let name = format!("{name}, acknowledgement at full load (closed loop),");
        report.add_latency_beside(&name, &latencies, &beside);
    }

    fn add_consumed(&self, report: &mut Report, name: &str, ours: &[Consumed], kafka: &OfKafka, least: f64) {
        let consumed = &kafka.consumed;
        let of_kafka = || (format!("Apache Kafka {VERSION}, cold too"), median(consumed.clone()));
        let beside: Vec<_> = (!consumed.is_empty()).then(of_kafka).into_iter().collect();
        self.add_rate(report, name, median_of(ours, |of| of.records_per_s), &beside, least);
        let mut add = |what: &str, value: f64| {
            report.add(Figure::new(format!("{name}, {what}"), value, Unit::MicrosecondsPerRecord));
        };
        add("server CPU", median_of(ours, |of| of.server_cpu_us));
        add("client CPU", median_of(ours, |of| of.client_cpu_us));
        // Checks that the reads were cold, with the smallest value of all rounds.
        let from_disk = ours.iter().map(|of| of.from_disk * 100.0).fold(f64::INFINITY, f64::min);
        report.add(Figure::new(format!("{name}, read from the disk"), from_disk, Unit::Percent).at_least(90.0));
    }
}
