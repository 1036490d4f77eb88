// sarama.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"

	. "interop/scenarios"
)

func config() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.MaxVersion
	config.Producer.Return.Successes = true
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.IsolationLevel = sarama.ReadCommitted
	config.Consumer.Group.Session.Timeout = 6 * time.Second
	config.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	return config
}

// Returns the settings of an idempotent producer, which retries for about a minute.
func idempotent() *sarama.Config {
	config := config()
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Net.MaxOpenRequests = 1
	config.Producer.Retry.Max = 300
	config.Producer.Retry.Backoff = 200 * time.Millisecond
	return config
}

func transactional(id string) *sarama.Config {
	config := idempotent()
	config.Producer.Transaction.ID = id
	config.Producer.Transaction.Timeout = 20 * time.Second
	return config
}

func producer(address string, config *sarama.Config) sarama.SyncProducer {
	return Value(sarama.NewSyncProducer([]string{address}, config))
}

func administer(address string) sarama.ClusterAdmin {
	return Value(sarama.NewClusterAdmin([]string{address}, config()))
}

func messages(topic string, values []string) (messages []*sarama.ProducerMessage) {
	for _, value := range values {
		messages = append(messages, &sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)})
	}
	return messages
}

func send(address, topic string, values []string) {
	to := producer(address, config())
	Check(to.SendMessages(messages(topic, values)))
	Check(to.Close())
}

// A member of a group.
type member struct {
	sarama.ConsumerGroup
	session atomic.Pointer[sarama.ConsumerGroupSession]
	records chan *sarama.ConsumerMessage
}

func join(address, group string, config *sarama.Config, topics ...string) *member {
	joined := Value(sarama.NewConsumerGroup([]string{address}, group, config))
	one := &member{ConsumerGroup: joined, records: make(chan *sarama.ConsumerMessage)}
	go consume(joined, one, topics)
	return one
}

// Consumes until the group is closed, also if a session fails.
func consume(group sarama.ConsumerGroup, handler sarama.ConsumerGroupHandler, topics []string) {
	for {
		err := group.Consume(context.Background(), topics, handler)
		if errors.Is(err, sarama.ErrClosedConsumerGroup) {
			return
		}
		if err != nil {
			log.Println(err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (one *member) Setup(session sarama.ConsumerGroupSession) error {
	one.session.Store(&session)
	return nil
}

func (one *member) Cleanup(sarama.ConsumerGroupSession) error {
	one.session.Store(nil)
	return nil
}

func (one *member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for record := range claim.Messages() {
		select {
		case one.records <- record:
		case <-session.Context().Done():
			return nil
		}
	}
	return nil
}

// Returns whether the member has that many partitions of a topic.
func (one *member) has(topic string, count int) bool {
	session := one.session.Load()
	return session != nil && len((*session).Claims()[topic]) == count
}

// Reads as many records.
func (one *member) read(count int) (records []*sarama.ConsumerMessage) {
	for limit := time.After(60 * time.Second); len(records) < count; {
		select {
		case record := <-one.records:
			records = append(records, record)
		case <-limit:
			Check(errors.New("not all records within a minute"))
		}
	}
	return records
}

func values(records []*sarama.ConsumerMessage) (found []string) {
	for _, record := range records {
		found = append(found, string(record.Value))
	}
	return found
}

func produceConsume(address string) {
	topic := Unique("t")
	send(address, topic, Numbers(1000))
	of := join(address, Unique("g"), config(), topic)
	Same(values(of.read(1000)), Numbers(1000))
	Check(of.Close())
}

func codecs(address string) {
	for _, codec := range []sarama.CompressionCodec{
		sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4, sarama.CompressionZSTD,
	} {
		topic, sent, config := Unique("t"), Numbers(200), config()
		for n := range sent {
			sent[n] += strings.Repeat("x", 200)
		}
		config.Producer.Compression = codec
		Check(producer(address, config).SendMessages(messages(topic, sent)))
		of := join(address, Unique("g"), config, topic)
		Same(values(of.read(200)), sent)
		Check(of.Close())
	}
}

func nullsHeaders(address string) {
	topic, at := Unique("t"), time.UnixMilli(1234567890123)
	headers := []sarama.RecordHeader{
		{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a")}, {Key: []byte("b"), Value: []byte{}},
	}
	to := producer(address, config())
	for _, message := range []*sarama.ProducerMessage{
		{Topic: topic, Headers: headers},
		{Topic: topic, Key: sarama.ByteEncoder{}, Value: sarama.ByteEncoder{}},
		{Topic: topic, Key: sarama.StringEncoder("k"), Value: sarama.StringEncoder("v"), Timestamp: at},
	} {
		_, _, err := to.SendMessage(message)
		Check(err)
	}
	of := join(address, Unique("g"), config(), topic)
	records := of.read(3)
	Same([][]byte{records[0].Key, records[0].Value}, [][]byte{nil, nil})
	for n, header := range records[0].Headers {
		Same(*header, headers[n])
	}
	Same([][]byte{records[1].Key, records[1].Value}, [][]byte{{}, {}})
	Same([][]byte{records[2].Key, records[2].Value}, [][]byte{[]byte("k"), []byte("v")})
	Same(records[2].Timestamp.Equal(at), true)
	Check(of.Close())
}

func group(address string) {
	for _, strategy := range []sarama.BalanceStrategy{
		sarama.NewBalanceStrategyRange(), sarama.NewBalanceStrategySticky(), sarama.NewBalanceStrategyCooperativeSticky(),
	} {
		topic, group, config := Unique("t"), Unique("g"), config()
		config.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
		Check(administer(address).CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 4, ReplicationFactor: 1}, false))
		first := join(address, group, config, topic)
		Until("the first member has all", 60, func() bool { return first.has(topic, 4) })
		second := join(address, group, config, topic)
		Until("both members have two", 60, func() bool { return first.has(topic, 2) && second.has(topic, 2) })
		Check(first.Close())
		Until("the second member has all", 60, func() bool { return second.has(topic, 4) })
		Check(second.Close())
	}
}

func commitResume(address string) {
	topic, group := Unique("t"), Unique("g")
	send(address, topic, Numbers(10))
	of := join(address, group, config(), topic)
	of.read(10)
	session := *of.session.Load()
	session.MarkOffset(topic, 0, 4, "note")
	session.Commit()
	offsets := Value(administer(address).ListConsumerGroupOffsets(group, map[string][]int32{topic: {0}}))
	stored := offsets.GetBlock(topic, 0)
	Same([]any{stored.Offset, stored.Metadata}, []any{int64(4), "note"})
	Check(of.Close())
	of = join(address, group, config(), topic)
	Same(values(of.read(6)), Numbers(10)[4:])
	Check(of.Close())
}

func seekTime(address string) {
	topic, sent := Unique("t"), messages("", Numbers(10))
	for n, message := range sent {
		message.Topic, message.Timestamp = topic, time.UnixMilli(1_700_000_000_000+int64(n)*1000)
	}
	Check(producer(address, config()).SendMessages(sent))
	client := Value(sarama.NewClient([]string{address}, config()))
	offset := Value(client.GetOffset(topic, 0, 1_700_000_003_500))
	Same(offset, int64(4))
	Same(Value(client.GetOffset(topic, 0, sarama.OffsetOldest)), int64(0))
	Same(Value(client.GetOffset(topic, 0, sarama.OffsetNewest)), int64(10))
	of := Value(Value(sarama.NewConsumerFromClient(client)).ConsumePartition(topic, 0, offset))
	for _, value := range Numbers(10)[4:] {
		Same(string((<-of.Messages()).Value), value)
	}
	Check(of.Close())
}

func admin(address string) {
	topic, group, by, hour, day := Unique("t"), Unique("g"), administer(address), "3600000", "86400000"
	detail := &sarama.TopicDetail{NumPartitions: 2, ReplicationFactor: 1, ConfigEntries: map[string]*string{"retention.ms": &hour}}
	Check(by.CreateTopic(topic, detail, false))
	Check(by.CreatePartitions(topic, 3, nil, false))
	Until("the topic has its new partition", 60, func() bool {
		return len(Value(by.DescribeTopics([]string{topic}))[0].Partitions) == 3
	})
	retention := func() string {
		resource := &sarama.ConfigResource{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{"retention.ms"}}
		described := Value(by.DescribeConfigs([]*sarama.ConfigResource{resource}, sarama.DescribeConfigsOptions{}))
		return described[0].Configs[0].Value
	}
	Same(retention(), hour)
	change := sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &day}
	changes := map[string]sarama.IncrementalAlterConfigsEntry{"retention.ms": change}
	Check(by.IncrementalAlterConfig(sarama.TopicResource, topic, changes, false))
	Same(retention(), day)
	brokers, _, err := by.DescribeCluster()
	Check(err)
	Same(len(brokers), 1)
	send(address, topic, []string{"a"})
	of := join(address, group, config(), topic)
	record := of.read(1)[0]
	(*of.session.Load()).MarkMessage(record, "")
	(*of.session.Load()).Commit()
	described := Value(by.DescribeConsumerGroups([]string{group}))[0]
	Same([]any{described.State, len(described.Members)}, []any{"Stable", 1})
	Check(of.Close())
	_, listed := Value(by.ListConsumerGroups())[group]
	Same(listed, true)
	Check(by.DeleteConsumerGroup(group))
	Check(by.DeleteRecords(topic, map[int32]int64{record.Partition: 1}))
	oldest := map[string]map[int32]int64{topic: {record.Partition: sarama.OffsetOldest}}
	Same(Value(by.ListOffsets(oldest, nil))[topic][record.Partition].Offset, int64(1))
	Check(by.DeleteTopic(topic))
	Until("the topic is gone", 60, func() bool {
		_, exists := Value(by.ListTopics())[topic]
		return !exists
	})
}

func transactions(address string) {
	topic, copied, group := Unique("t"), Unique("copy"), Unique("g")
	send(address, topic, Numbers(10))
	to := producer(address, transactional(Unique("tx")))
	for n, end := range []func() error{to.CommitTxn, to.AbortTxn, to.CommitTxn} {
		Check(to.BeginTxn())
		Check(to.SendMessages(messages(copied, Numbers(30)[n*10:n*10+10])))
		Check(end())
	}
	of := join(address, Unique("g"), config(), copied)
	Same(values(of.read(20)), slices.Concat(Numbers(10), Numbers(30)[20:]))
	Check(of.Close())
	// Consume, transform, produce.
	of = join(address, group, config(), topic)
	last := of.read(10)[9]
	Check(to.BeginTxn())
	Check(to.SendMessages(messages(copied, []string{"done"})))
	metadata := sarama.NewConsumerGroupMetadataFromSession(*of.session.Load(), group, nil)
	Check(to.AddMessageToTxnWithGroupMetadata(last, metadata, nil))
	Check(to.CommitTxn())
	Until("the offset is committed", 60, func() bool {
		offsets := Value(administer(address).ListConsumerGroupOffsets(group, map[string][]int32{topic: {0}}))
		return offsets.GetBlock(topic, 0).Offset == 10
	})
	Check(of.Close())
	// A producer with the same id fences this one.
	config := transactional(Unique("tx"))
	config.Producer.Retry.Max = 1
	older := producer(address, config)
	producer(address, config)
	Check(older.BeginTxn())
	err := older.SendMessages(messages(copied, []string{"zombie"}))
	if err == nil {
		err = older.CommitTxn()
	}
	Same(err != nil && older.TxnStatus()&sarama.ProducerTxnFlagFatalError != 0, true)
}

func large(address string) {
	topic, sent, config := Unique("t"), slices.Repeat([]string{strings.Repeat("x", 900_000)}, 20), config()
	send(address, topic, sent)
	config.Consumer.Fetch.Default = 100_000
	of := join(address, Unique("g"), config, topic)
	Same(values(of.read(20)), sent)
	Check(of.Close())
}

func manyTopics(address string) {
	names, sent, by := []string{}, []*sarama.ProducerMessage{}, administer(address)
	for range 100 {
		name := Unique("many")
		names, sent = append(names, name), append(sent, messages(name, []string{name})...)
		Check(by.CreateTopic(name, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false))
	}
	Check(producer(address, config()).SendMessages(sent))
	of := join(address, Unique("g"), config(), names...)
	found := values(of.read(100))
	slices.Sort(found)
	slices.Sort(names)
	Same(found, names)
	Check(of.Close())
}

// Calls what may fail because the server is killed meanwhile.
func retried[T any](call func() (T, error)) (value T) {
	Until("a call succeeds", 60, func() bool {
		var err error
		value, err = call()
		return err == nil
	})
	return value
}

// Sends numbers while the server is killed again and again. It takes at least as long as told.
func sendNumbers(address, topic string, count int, takes time.Duration) {
	to := retried(func() (sarama.AsyncProducer, error) { return sarama.NewAsyncProducer([]string{address}, idempotent()) })
	go func() {
		for _, message := range messages(topic, Numbers(count)) {
			to.Input() <- message
			time.Sleep(takes / time.Duration(count))
		}
	}()
	for range count {
		select {
		case <-to.Successes():
		case err := <-to.Errors():
			Check(err)
		}
	}
	Check(to.Close())
}

// Checks that the numbers are in a topic once and in order.
func checkNumbers(address, topic string, count int) {
	group := Unique("g")
	of := retried(func() (sarama.ConsumerGroup, error) {
		return sarama.NewConsumerGroup([]string{address}, group, config())
	})
	one := &member{ConsumerGroup: of, records: make(chan *sarama.ConsumerMessage)}
	go consume(of, one, []string{topic})
	records := map[int64]string{}
	for limit := time.After(150 * time.Second); len(records) < count; {
		select {
		case record := <-one.records:
			records[record.Offset] = string(record.Value)
		case <-limit:
			Check(fmt.Errorf("%d of %d records within 150 s", len(records), count))
		}
	}
	Same(InOrder(records), Numbers(count))
}

func kill(address string) {
	topic := Unique("t")
	sendNumbers(address, topic, 4000, 10*time.Second)
	checkNumbers(address, topic, 4000)
}

// Copies records in transactions.
type copier struct {
	writer        sarama.SyncProducer
	renewed       func() (sarama.SyncProducer, error)
	group, copied string
}

func (copier) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (copier) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (one *copier) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for session.Context().Err() == nil {
		records := []*sarama.ConsumerMessage{}
		for enough := time.After(100 * time.Millisecond); enough != nil; {
			select {
			case record, open := <-claim.Messages():
				if !open {
					return nil
				}
				records = append(records, record)
				if len(records) == 10 {
					enough = nil
				}
			case <-enough:
				enough = nil
			}
		}
		if len(records) == 0 {
			continue
		}
		if err := one.copy(session, records); err != nil {
			if one.writer.TxnStatus()&sarama.ProducerTxnFlagFatalError != 0 || one.writer.AbortTxn() != nil {
				one.writer.Close()
				one.writer = retried(one.renewed)
			}
			// The next session begins at what is committed.
			return err
		}
	}
	return nil
}

func (one *copier) copy(session sarama.ConsumerGroupSession, records []*sarama.ConsumerMessage) error {
	if err := one.writer.BeginTxn(); err != nil {
		return err
	}
	if err := one.writer.SendMessages(messages(one.copied, values(records))); err != nil {
		return err
	}
	metadata := sarama.NewConsumerGroupMetadataFromSession(session, one.group, nil)
	if err := one.writer.AddMessageToTxnWithGroupMetadata(records[len(records)-1], metadata, nil); err != nil {
		return err
	}
	// It is likely that the server is killed within a transaction.
	time.Sleep(100 * time.Millisecond)
	return one.writer.CommitTxn()
}

func killTransactions(address string) {
	topic, group, copied, id := Unique("t"), Unique("g"), Unique("copy"), Unique("tx")
	sendNumbers(address, topic, 1000, 0)
	renewed := func() (sarama.SyncProducer, error) {
		return sarama.NewSyncProducer([]string{address}, transactional(id))
	}
	of := retried(func() (sarama.ConsumerGroup, error) {
		return sarama.NewConsumerGroup([]string{address}, group, config())
	})
	go consume(of, &copier{writer: retried(renewed), renewed: renewed, group: group, copied: copied}, []string{topic})
	checkNumbers(address, copied, 1000)
}

func main() {
	Run(map[string]func(string){
		"produce-consume": produceConsume, "codecs": codecs, "nulls-headers": nullsHeaders, "group": group,
		"commit-resume": commitResume, "seek-time": seekTime, "admin": admin, "transactions": transactions, "large": large,
		"many-topics": manyTopics, "kill": kill, "disconnects": kill, "kill-transactions": killTransactions,
	})
}
