// franz-go.
package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	. "interop/scenarios"
)

var ctx = context.Background()

func basic(address string) []kgo.Opt {
	// By default a connection that ends before the first answer is an error, because it may be one that wants TLS.
	return []kgo.Opt{kgo.SeedBrokers(address), kgo.AllowAutoTopicCreation(), kgo.AlwaysRetryEOF()}
}

func client(address string, options ...kgo.Opt) *kgo.Client {
	return Value(kgo.NewClient(append(options, basic(address)...)...))
}

// Returns a member of a group, which commits only when it is told to.
func reader(address, group, topic string, options ...kgo.Opt) *kgo.Client {
	member := []kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit()}
	return client(address, append(member, options...)...)
}

func send(to *kgo.Client, topic string, values []string) {
	records := []*kgo.Record{}
	for _, value := range values {
		records = append(records, &kgo.Record{Topic: topic, Value: []byte(value)})
	}
	Check(to.ProduceSync(ctx, records...).FirstErr())
}

// Polls for a moment.
func poll(of interface {
	PollRecords(context.Context, int) kgo.Fetches
}, most int) kgo.Fetches {
	moment, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return of.PollRecords(moment, most)
}

// Reads as many records.
func read(of *kgo.Client, count int) (records []*kgo.Record) {
	Until("all records", 60, func() bool {
		fetches := poll(of, 0)
		if err := fetches.Err0(); !errors.Is(err, context.DeadlineExceeded) {
			Check(err)
		}
		records = append(records, fetches.Records()...)
		return len(records) >= count
	})
	return records
}

func values(records []*kgo.Record) (found []string) {
	for _, record := range records {
		found = append(found, string(record.Value))
	}
	return found
}

func produceConsume(address string) {
	topic := Unique("t")
	send(client(address), topic, Numbers(1000))
	of := reader(address, Unique("g"), topic)
	Same(values(read(of, 1000)), Numbers(1000))
	of.Close()
}

func codecs(address string) {
	for _, codec := range []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	} {
		topic, sent := Unique("t"), Numbers(200)
		for n := range sent {
			sent[n] += strings.Repeat("x", 200)
		}
		send(client(address, kgo.ProducerBatchCompression(codec)), topic, sent)
		of := reader(address, Unique("g"), topic)
		Same(values(read(of, 200)), sent)
		of.Close()
	}
}

func nullsHeaders(address string) {
	topic, headers := Unique("t"), []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "a"}, {Key: "b", Value: []byte{}}}
	at := time.UnixMilli(1234567890123)
	Check(client(address).ProduceSync(
		ctx,
		&kgo.Record{Topic: topic, Headers: headers},
		&kgo.Record{Topic: topic, Key: []byte{}, Value: []byte{}},
		&kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("v"), Timestamp: at},
	).FirstErr())
	of := reader(address, Unique("g"), topic)
	records := read(of, 3)
	Same([][]byte{records[0].Key, records[0].Value}, [][]byte{nil, nil})
	Same(records[0].Headers, headers)
	Same([][]byte{records[1].Key, records[1].Value}, [][]byte{{}, {}})
	Same([][]byte{records[2].Key, records[2].Value}, [][]byte{[]byte("k"), []byte("v")})
	Same(records[2].Timestamp.Equal(at), true)
	of.Close()
}

// Returns a member of a group and the number of its partitions.
func member(address, group, topic string, options []kgo.Opt) (*kgo.Client, *atomic.Int32) {
	held := new(atomic.Int32)
	change := func(by int32) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			held.Add(by * int32(len(partitions[topic])))
		}
	}
	return reader(address, group, topic, append(options,
		kgo.OnPartitionsAssigned(change(1)), kgo.OnPartitionsRevoked(change(-1)), kgo.OnPartitionsLost(change(-1)))...), held
}

func groupOf(address string, options ...kgo.Opt) {
	topic, group := Unique("t"), Unique("g")
	Value(kadm.NewClient(client(address)).CreateTopic(ctx, 4, 1, nil, topic))
	first, ofFirst := member(address, group, topic, slices.Clone(options))
	Until("the first member has all", 60, func() bool { return ofFirst.Load() == 4 })
	second, ofSecond := member(address, group, topic, slices.Clone(options))
	Until("both members have two", 60, func() bool { return ofFirst.Load() == 2 && ofSecond.Load() == 2 })
	first.Close()
	Until("the second member has all", 60, func() bool { return ofSecond.Load() == 4 })
	second.Close()
}

func group(address string) {
	groupOf(address, kgo.Balancers(kgo.RangeBalancer()), kgo.SessionTimeout(6*time.Second))
	groupOf(address, kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.SessionTimeout(6*time.Second))
}

func consumerProtocol(address string) {
	groupOf(address, kgo.ServerSideBalancer(), kgo.Balancers(kgo.RangeBalancer()))
	groupOf(address, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
}

func commitResume(address string) {
	topic, group := Unique("t"), Unique("g")
	send(client(address), topic, Numbers(10))
	of := reader(address, group, topic)
	Check(of.CommitRecords(ctx, read(of, 10)[:4]...))
	offsets := Value(kadm.NewClient(of).FetchOffsets(ctx, group))
	Same(offsets[topic][0].At, int64(4))
	of.Close()
	of = reader(address, group, topic)
	Same(values(read(of, 6)), Numbers(10)[4:])
	of.Close()
}

func seekTime(address string) {
	topic, to := Unique("t"), client(address)
	for n, value := range Numbers(10) {
		at := time.UnixMilli(1_700_000_000_000 + int64(n)*1000)
		Check(to.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(value), Timestamp: at}).FirstErr())
	}
	offsets := Value(kadm.NewClient(to).ListOffsetsAfterMilli(ctx, 1_700_000_003_500, topic))
	Same(offsets[topic][0].Offset, int64(4))
	ends := Value(kadm.NewClient(to).ListEndOffsets(ctx, topic))
	Same(ends[topic][0].Offset, int64(10))
	start := map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AfterMilli(1_700_000_003_500)}}
	of := client(address, kgo.ConsumePartitions(start))
	Same(values(read(of, 6)), Numbers(10)[4:])
	of.Close()
}

func admin(address string) {
	topic, group, to := Unique("t"), Unique("g"), client(address)
	by, hour, day := kadm.NewClient(to), "3600000", "86400000"
	Value(by.CreateTopic(ctx, 2, 1, map[string]*string{"retention.ms": &hour}, topic))
	Check(Value(by.UpdatePartitions(ctx, 3, topic)).Error())
	Until("the topic has its new partition", 60, func() bool {
		return len(Value(by.ListTopics(ctx, topic))[topic].Partitions) == 3
	})
	retention := func() string {
		resource := Value(Value(by.DescribeTopicConfigs(ctx, topic)).On(topic, nil))
		index := slices.IndexFunc(resource.Configs, func(one kadm.Config) bool { return one.Key == "retention.ms" })
		return resource.Configs[index].MaybeValue()
	}
	Same(retention(), hour)
	changes := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &day}}
	Check(Value(Value(by.AlterTopicConfigs(ctx, changes, topic)).On(topic, nil)).Err)
	Same(retention(), day)
	Same(len(Value(by.ListBrokers(ctx))), 1)
	send(to, topic, []string{"a"})
	of := reader(address, group, topic)
	record := read(of, 1)[0]
	Check(of.CommitRecords(ctx, record))
	described := Value(by.DescribeGroups(ctx, group))[group]
	Same([]any{described.State, len(described.Members)}, []any{"Stable", 1})
	Same(Value(by.Lag(ctx, group))[group].Lag.Total(), int64(0))
	of.Close()
	Same(Value(by.ListGroups(ctx))[group].Group, group)
	Check(Value(by.DeleteGroup(ctx, group)).Err)
	until := kadm.Offsets{}
	until.AddOffset(topic, record.Partition, 1, -1)
	Check(Value(by.DeleteRecords(ctx, until)).Error())
	Same(Value(by.ListStartOffsets(ctx, topic))[topic][record.Partition].Offset, int64(1))
	Check(Value(by.DeleteTopic(ctx, topic)).Err)
	Until("the topic is gone", 60, func() bool { return !Value(by.ListTopics(ctx)).Has(topic) })
}

func transactions(address string) {
	topic, copied, group := Unique("t"), Unique("copy"), Unique("g")
	send(client(address), topic, Numbers(10))
	to := client(address, kgo.TransactionalID(Unique("tx")))
	for n, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		Check(to.BeginTransaction())
		send(to, copied, Numbers(30)[n*10:n*10+10])
		Check(to.EndTransaction(ctx, end))
	}
	of := reader(address, Unique("g"), copied, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	Same(values(read(of, 20)), slices.Concat(Numbers(10), Numbers(30)[20:]))
	of.Close()
	// Consume, transform, produce.
	session := copier(address, Unique("tx"), group, topic)
	records := read(session.Client(), 10)
	Check(session.Begin())
	Check(session.ProduceSync(ctx, &kgo.Record{Topic: copied, Value: records[0].Value}).FirstErr())
	Same(Value(session.End(ctx, kgo.TryCommit)), true)
	Until("the offset is committed", 60, func() bool {
		return Value(kadm.NewClient(to).FetchOffsets(ctx, group))[topic][0].At == 10
	})
	session.Close()
	// A producer with the same id fences this one.
	id := Unique("tx")
	older, newer := client(address, kgo.TransactionalID(id)), client(address, kgo.TransactionalID(id))
	for _, one := range []*kgo.Client{older, newer} {
		Check(one.BeginTransaction())
		send(one, copied, []string{"one"})
		Check(one.EndTransaction(ctx, kgo.TryCommit))
	}
	Check(older.BeginTransaction())
	err := older.ProduceSync(ctx, &kgo.Record{Topic: copied, Value: []byte("zombie")}).FirstErr()
	if err == nil {
		err = older.EndTransaction(ctx, kgo.TryCommit)
	}
	Same(errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.ProducerFenced), true)
}

func large(address string) {
	topic, sent := Unique("t"), slices.Repeat([]string{strings.Repeat("x", 900_000)}, 20)
	send(client(address), topic, sent)
	of := reader(address, Unique("g"), topic, kgo.FetchMaxPartitionBytes(100_000))
	Same(values(read(of, 20)), sent)
	of.Close()
}

func manyTopics(address string) {
	names, to := []string{}, client(address)
	for range 100 {
		names = append(names, Unique("many"))
	}
	Check(Value(kadm.NewClient(to).CreateTopics(ctx, 1, 1, nil, names...)).Error())
	for _, name := range names {
		to.Produce(ctx, &kgo.Record{Topic: name, Value: []byte(name)}, func(_ *kgo.Record, err error) { Check(err) })
	}
	Check(to.Flush(ctx))
	of := reader(address, Unique("g"), "", kgo.ConsumeTopics(names...))
	found := values(read(of, 100))
	slices.Sort(found)
	slices.Sort(names)
	Same(found, names)
	of.Close()
}

// Sends numbers while the server is killed again and again. It takes at least as long as told.
func sendNumbers(address, topic string, count int, takes time.Duration) {
	to := client(address)
	for _, value := range Numbers(count) {
		to.Produce(ctx, &kgo.Record{Topic: topic, Value: []byte(value)}, func(_ *kgo.Record, err error) { Check(err) })
		time.Sleep(takes / time.Duration(count))
	}
	limit, cancel := context.WithTimeout(ctx, 120*time.Second)
	defer cancel()
	Check(to.Flush(limit))
}

// Checks that the numbers are in a topic once and in order. Some fail to be read at first, because the server is killed.
func checkNumbers(address, topic string, count int) {
	of := reader(address, Unique("g"), topic, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.SessionTimeout(6*time.Second))
	records := map[int64]string{}
	Until("all records", 120, func() bool {
		poll(of, 0).EachRecord(func(record *kgo.Record) { records[record.Offset] = string(record.Value) })
		return len(records) >= count
	})
	Same(InOrder(records), Numbers(count))
}

func kill(address string) {
	topic := Unique("t")
	sendNumbers(address, topic, 4000, 10*time.Second)
	checkNumbers(address, topic, 4000)
}

// Returns a client that reads and writes in transactions.
func copier(address, id, group, topic string) *kgo.GroupTransactSession {
	return Value(kgo.NewGroupTransactSession(append(
		basic(address), kgo.TransactionalID(id), kgo.TransactionTimeout(20*time.Second),
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RequireStableFetchOffsets(), kgo.SessionTimeout(6*time.Second),
		// By default the member waits for up to 5 s when it has lost its membership often: longer than the server runs.
		kgo.RetryBackoffFn(func(int) time.Duration { return 200 * time.Millisecond }),
	)...))
}

func killTransactions(address string) {
	topic, copied, group, id := Unique("t"), Unique("copy"), Unique("g"), Unique("tx")
	sendNumbers(address, topic, 1000, 0)
	session, done := copier(address, id, group, topic), int64(0)
	Until("all records are copied", 150, func() bool {
		records := poll(session, 10).Records()
		if len(records) == 0 {
			// The last commit may have been done although its answer was lost.
			offsets, err := kadm.NewClient(session.Client()).FetchOffsets(ctx, group)
			if err == nil {
				done = offsets[topic][0].At
			}
			return done == 1000
		}
		Check(session.Begin())
		for _, record := range records {
			session.Produce(ctx, &kgo.Record{Topic: copied, Value: record.Value}, nil)
		}
		// It is likely that the server is killed within a transaction.
		time.Sleep(100 * time.Millisecond)
		committed, err := session.End(ctx, kgo.TryCommit)
		if err != nil {
			session.Close()
			session = copier(address, id, group, topic)
		} else if committed {
			done = records[len(records)-1].Offset + 1
		}
		return done == 1000
	})
	session.Close()
	checkNumbers(address, copied, 1000)
}

func main() {
	Run(map[string]func(string){
		"produce-consume": produceConsume, "codecs": codecs, "nulls-headers": nullsHeaders, "group": group,
		"consumer-protocol": consumerProtocol, "commit-resume": commitResume, "seek-time": seekTime, "admin": admin,
		"transactions": transactions, "large": large, "many-topics": manyTopics, "kill": kill, "disconnects": kill,
		"kill-transactions": killTransactions,
	})
}
