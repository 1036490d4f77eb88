// segmentio/kafka-go. Its producer is not idempotent and has no transactions.
package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	. "interop/scenarios"
)

var ctx = context.Background()

func client(address string) *kafka.Client {
	transport := &kafka.Transport{MetadataTTL: time.Second}
	return &kafka.Client{Addr: kafka.TCP(address), Timeout: 30 * time.Second, Transport: transport}
}

func writer(address string) *kafka.Writer {
	return &kafka.Writer{
		Addr: kafka.TCP(address), RequiredAcks: kafka.RequireAll, AllowAutoTopicCreation: true, BatchTimeout: 10 * time.Millisecond,
	}
}

func messages(topic string, values []string) (messages []kafka.Message) {
	for _, value := range values {
		messages = append(messages, kafka.Message{Topic: topic, Value: []byte(value)})
	}
	return messages
}

// Sends messages. The first ones to a topic fail until it has been created.
func send(to *kafka.Writer, messages ...kafka.Message) {
	Until("the messages are sent", 60, func() bool {
		err := to.WriteMessages(ctx, messages...)
		if !errors.Is(err, kafka.UnknownTopicOrPartition) && !errors.Is(err, kafka.LeaderNotAvailable) {
			Check(err)
		}
		return err == nil
	})
	Check(to.Close())
}

// Returns a member of a group, which commits only when it is told to.
func reader(address, group string, topics ...string) *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{address}, GroupID: group, GroupTopics: topics, StartOffset: kafka.FirstOffset,
		MaxWait: 100 * time.Millisecond, SessionTimeout: 6 * time.Second, HeartbeatInterval: 500 * time.Millisecond,
		JoinGroupBackoff: 100 * time.Millisecond, MaxBytes: 1_000_000, IsolationLevel: kafka.ReadCommitted,
	})
}

// Reads as many messages.
func read(of *kafka.Reader, count int) (found []kafka.Message) {
	limit, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for len(found) < count {
		found = append(found, Value(of.FetchMessage(limit)))
	}
	return found
}

func values(messages []kafka.Message) (found []string) {
	for _, message := range messages {
		found = append(found, string(message.Value))
	}
	return found
}

func committed(address, group, topic string) kafka.OffsetFetchPartition {
	request := &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: {0}}}
	found := Value(client(address).OffsetFetch(ctx, request))
	Check(found.Error)
	return found.Topics[topic][0]
}

func create(address string, topics ...kafka.TopicConfig) {
	created := Value(client(address).CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: topics}))
	for _, err := range created.Errors {
		Check(err)
	}
}

func produceConsume(address string) {
	topic := Unique("t")
	send(writer(address), messages(topic, Numbers(1000))...)
	of := reader(address, Unique("g"), topic)
	Same(values(read(of, 1000)), Numbers(1000))
	Check(of.Close())
}

func codecs(address string) {
	for _, codec := range []kafka.Compression{0, kafka.Gzip, kafka.Snappy, kafka.Lz4, kafka.Zstd} {
		topic, sent, to := Unique("t"), Numbers(200), writer(address)
		for n := range sent {
			sent[n] += strings.Repeat("x", 200)
		}
		to.Compression = codec
		send(to, messages(topic, sent)...)
		of := reader(address, Unique("g"), topic)
		Same(values(read(of, 200)), sent)
		Check(of.Close())
	}
}

func nullsHeaders(address string) {
	topic, headers := Unique("t"), []kafka.Header{{Key: "a", Value: []byte("1")}, {Key: "a"}, {Key: "b", Value: []byte{}}}
	at := time.UnixMilli(1234567890123)
	send(writer(address),
		kafka.Message{Topic: topic, Headers: headers},
		kafka.Message{Topic: topic, Key: []byte{}, Value: []byte{}},
		kafka.Message{Topic: topic, Key: []byte("k"), Value: []byte("v"), Time: at})
	// The reader of groups reads an empty value as a null.
	fetched := Value(client(address).Fetch(ctx, &kafka.FetchRequest{Topic: topic, MinBytes: 1, MaxBytes: 1_000_000}))
	Check(fetched.Error)
	record := Value(fetched.Records.ReadRecord())
	Same([]any{record.Key, record.Value}, []any{nil, nil})
	Same(record.Headers, headers)
	record = Value(fetched.Records.ReadRecord())
	Same([]int{record.Key.Len(), record.Value.Len()}, []int{0, 0})
	record = Value(fetched.Records.ReadRecord())
	Same([]string{string(Value(kafka.ReadAll(record.Key))), string(Value(kafka.ReadAll(record.Value)))}, []string{"k", "v"})
	Same(record.Time.Equal(at), true)
}

// Returns a member of a group and the number of its partitions.
func member(address, group, topic string, balancer kafka.GroupBalancer) (*kafka.ConsumerGroup, *atomic.Int32) {
	one, held := Value(kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: group, Brokers: []string{address}, Topics: []string{topic}, GroupBalancers: []kafka.GroupBalancer{balancer},
		HeartbeatInterval: 500 * time.Millisecond, SessionTimeout: 6 * time.Second, JoinGroupBackoff: 100 * time.Millisecond,
	})), new(atomic.Int32)
	go func() {
		for {
			generation, err := one.Next(ctx)
			if errors.Is(err, kafka.ErrGroupClosed) {
				return
			}
			Check(err)
			held.Store(int32(len(generation.Assignments[topic])))
		}
	}()
	return one, held
}

func group(address string) {
	for _, balancer := range []kafka.GroupBalancer{kafka.RangeGroupBalancer{}, kafka.RoundRobinGroupBalancer{}} {
		topic, group := Unique("t"), Unique("g")
		create(address, kafka.TopicConfig{Topic: topic, NumPartitions: 4, ReplicationFactor: 1})
		first, ofFirst := member(address, group, topic, balancer)
		Until("the first member has all", 60, func() bool { return ofFirst.Load() == 4 })
		second, ofSecond := member(address, group, topic, balancer)
		Until("both members have two", 60, func() bool { return ofFirst.Load() == 2 && ofSecond.Load() == 2 })
		Check(first.Close())
		Until("the second member has all", 60, func() bool { return ofSecond.Load() == 4 })
		Check(second.Close())
	}
}

func commitResume(address string) {
	topic, group := Unique("t"), Unique("g")
	send(writer(address), messages(topic, Numbers(10))...)
	of := reader(address, group, topic)
	Check(of.CommitMessages(ctx, read(of, 10)[3]))
	Same(committed(address, group, topic).CommittedOffset, int64(4))
	Check(of.Close())
	of = reader(address, group, topic)
	Same(values(read(of, 6)), Numbers(10)[4:])
	Check(of.Close())
}

func seekTime(address string) {
	topic := Unique("t")
	sent, at := messages(topic, Numbers(10)), time.UnixMilli(1_700_000_003_500)
	for n := range sent {
		sent[n].Time = time.UnixMilli(1_700_000_000_000 + int64(n)*1000)
	}
	send(writer(address), sent...)
	requests := []kafka.OffsetRequest{kafka.TimeOffsetOf(0, at), kafka.FirstOffsetOf(0), kafka.LastOffsetOf(0)}
	request := &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: requests}}
	found := Value(client(address).ListOffsets(ctx, request)).Topics[topic][0]
	Check(found.Error)
	_, timed := found.Offsets[4]
	Same([]any{found.FirstOffset, found.LastOffset, timed}, []any{int64(0), int64(10), true})
	of := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{address}, Topic: topic, MaxWait: 100 * time.Millisecond})
	Check(of.SetOffsetAt(ctx, at))
	Same(values(read(of, 6)), Numbers(10)[4:])
	Check(of.Close())
}

func admin(address string) {
	topic, group, by := Unique("t"), Unique("g"), client(address)
	retention := kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "3600000"}
	create(address, kafka.TopicConfig{
		Topic: topic, NumPartitions: 2, ReplicationFactor: 1, ConfigEntries: []kafka.ConfigEntry{retention},
	})
	more := []kafka.TopicPartitionsConfig{{Name: topic, Count: 3}}
	Check(Value(by.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{Topics: more})).Errors[topic])
	// The client answers from what it knew a moment ago.
	Until("the topic has its new partition", 60, func() bool {
		found := Value(by.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}}))
		Same(len(found.Brokers), 1)
		return len(found.Topics[0].Partitions) == 3
	})
	is := func(expected string) {
		found := Value(by.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{
			{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{"retention.ms"}},
		}}))
		Same(found.Resources[0].ConfigEntries[0].ConfigValue, expected)
	}
	is("3600000")
	changes := []kafka.IncrementalAlterConfigsRequestConfig{{Name: "retention.ms", Value: "86400000"}}
	changed := Value(by.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{
			{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, Configs: changes},
		},
	}))
	Check(changed.Resources[0].Error)
	is("86400000")
	send(writer(address), messages(topic, []string{"a"})...)
	of := reader(address, group, topic)
	Check(of.CommitMessages(ctx, read(of, 1)[0]))
	described := Value(by.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})).Groups[0]
	Same([]any{described.GroupState, len(described.Members)}, []any{"Stable", 1})
	Check(of.Close())
	listed := Value(by.ListGroups(ctx, &kafka.ListGroupsRequest{})).Groups
	Same(slices.ContainsFunc(listed, func(one kafka.ListGroupsResponseGroup) bool { return one.GroupID == group }), true)
	Check(Value(by.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})).Errors[group])
	Check(Value(by.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})).Errors[topic])
	Until("the topic is gone", 60, func() bool {
		topics := Value(by.Metadata(ctx, &kafka.MetadataRequest{})).Topics
		return !slices.ContainsFunc(topics, func(one kafka.Topic) bool { return one.Name == topic })
	})
}

// Only offsets: batches with a producer's id cannot be sent.
func transactions(address string) {
	topic, group, id, by := Unique("t"), Unique("g"), Unique("tx"), client(address)
	send(writer(address), messages(topic, Numbers(10))...)
	begin := func() *kafka.ProducerSession {
		request := &kafka.InitProducerIDRequest{TransactionalID: id, TransactionTimeoutMs: 20_000, ProducerID: -1, ProducerEpoch: -1}
		begun := Value(by.InitProducerID(ctx, request))
		Check(begun.Error)
		return begun.Producer
	}
	older := begin()
	end := func(offset int64, commit bool) {
		Check(Value(by.AddOffsetsToTxn(ctx, &kafka.AddOffsetsToTxnRequest{
			TransactionalID: id, ProducerID: older.ProducerID, ProducerEpoch: older.ProducerEpoch, GroupID: group,
		})).Error)
		offsets := map[string][]kafka.TxnOffsetCommit{topic: {{Partition: 0, Offset: offset}}}
		stored := Value(by.TxnOffsetCommit(ctx, &kafka.TxnOffsetCommitRequest{
			TransactionalID: id, ProducerID: older.ProducerID, ProducerEpoch: older.ProducerEpoch, GroupID: group, GenerationID: -1,
			Topics: offsets,
		}))
		Check(stored.Topics[topic][0].Error)
		Check(Value(by.EndTxn(ctx, &kafka.EndTxnRequest{
			TransactionalID: id, ProducerID: older.ProducerID, ProducerEpoch: older.ProducerEpoch, Committed: commit,
		})).Error)
	}
	end(4, true)
	Until("the offset is committed", 60, func() bool { return committed(address, group, topic).CommittedOffset == 4 })
	end(7, false)
	Same(committed(address, group, topic).CommittedOffset, int64(4))
	of := reader(address, group, topic)
	Same(values(read(of, 6)), Numbers(10)[4:])
	Check(of.Close())
	// A producer with the same id fences this one.
	begin()
	err := Value(by.AddOffsetsToTxn(ctx, &kafka.AddOffsetsToTxnRequest{
		TransactionalID: id, ProducerID: older.ProducerID, ProducerEpoch: older.ProducerEpoch, GroupID: group,
	})).Error
	Same(errors.Is(err, kafka.InvalidProducerEpoch) || errors.Is(err, kafka.ProducerFenced), true)
}

func large(address string) {
	topic, sent := Unique("t"), slices.Repeat([]string{strings.Repeat("x", 900_000)}, 20)
	send(writer(address), messages(topic, sent)...)
	of := reader(address, Unique("g"), topic)
	Same(values(read(of, 20)), sent)
	Check(of.Close())
}

func manyTopics(address string) {
	names, topics, sent := []string{}, []kafka.TopicConfig{}, []kafka.Message{}
	for range 100 {
		name := Unique("many")
		names, sent = append(names, name), append(sent, messages(name, []string{name})...)
		topics = append(topics, kafka.TopicConfig{Topic: name, NumPartitions: 1, ReplicationFactor: 1})
	}
	create(address, topics...)
	send(writer(address), sent...)
	of := reader(address, Unique("g"), names...)
	found := values(read(of, 100))
	slices.Sort(found)
	slices.Sort(names)
	Same(found, names)
	Check(of.Close())
}

// The server is killed again and again meanwhile. All records are there at least once.
func kill(address string) {
	topic, to, sent := Unique("t"), writer(address), map[string]bool{}
	for batch := range slices.Chunk(Numbers(4000), 20) {
		Until("a batch is sent", 60, func() bool { return to.WriteMessages(ctx, messages(topic, batch)...) == nil })
		time.Sleep(50 * time.Millisecond)
	}
	for _, value := range Numbers(4000) {
		sent[value] = true
	}
	limit, cancel := context.WithTimeout(ctx, 120*time.Second)
	defer cancel()
	of := reader(address, Unique("g"), topic)
	for len(sent) > 0 {
		delete(sent, string(Value(of.FetchMessage(limit)).Value))
	}
}

func main() {
	Run(map[string]func(string){
		"produce-consume": produceConsume, "codecs": codecs, "nulls-headers": nullsHeaders, "group": group,
		"commit-resume": commitResume, "seek-time": seekTime, "admin": admin, "transactions": transactions, "large": large,
		"many-topics": manyTopics, "kill": kill, "disconnects": kill,
	})
}
