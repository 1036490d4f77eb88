// @confluentinc/kafka-javascript, which is librdkafka, by its API that is like that of kafkajs.

const { Kafka, CompressionTypes, ErrorCodes, PartitionAssigners, logLevel } = require('@confluentinc/kafka-javascript').KafkaJS
const { assert, unique, until, sleep, run } = require('./scenarios')

const client = (address, settings = {}) => new Kafka({ ...settings, kafkaJS: { clientId: 'interop', brokers: [address], logLevel: logLevel.NOTHING } })

// A transaction must fit between two kills, and so must the member's way back into its group.
const quick = { 'reconnect.backoff.ms': 50, 'reconnect.backoff.max.ms': 200 }

async function connected (one) {
  await one.connect()
  return one
}

async function send (address, topic, values, settings = {}) {
  const producer = await connected(client(address).producer(settings))
  await producer.send({ topic, messages: values.map(value => ({ value })) })
  await producer.disconnect()
}

// A member of a group that keeps what it reads.
async function member (address, groupId, topics, settings = {}) {
  const consumer = await connected(client(address).consumer({ kafkaJS: { groupId, fromBeginning: true }, ...settings }))
  const records = []
  await consumer.subscribe({ topics: [topics].flat() })
  await consumer.run({ eachMessage: async record => { records.push(record) } })
  return { consumer, records }
}

// Reads as many records.
async function read (address, groupId, topics, count, settings = {}, seconds = 60) {
  const { consumer, records } = await member(address, groupId, topics, settings)
  await until(`${count} records`, () => records.length >= count, seconds)
  await consumer.disconnect()
  return records
}

const values = records => records.map(({ message }) => message.value?.toString() ?? null)

async function groupsOf (address, settings) {
  const [topic, groupId] = [unique('t'), unique('g')]
  const admin = await connected(client(address).admin())
  await admin.createTopics({ topics: [{ topic, numPartitions: 4 }] })
  await admin.disconnect()
  const [first, second] = [await member(address, groupId, topic, settings), await member(address, groupId, topic, settings)]
  const counts = () => [first, second].map(({ consumer }) => consumer.assignment().length)
  await until('both members have two', () => counts().every(count => count === 2))
  await first.consumer.disconnect()
  await until('the second member has all', () => second.consumer.assignment().length === 4)
  await second.consumer.disconnect()
}

// The server is killed, or the connections are cut, again and again meanwhile.
async function survive (address) {
  const topic = unique('t')
  const sent = Array.from({ length: 4000 }, (_, n) => `${n}`)
  const producer = await connected(client(address).producer({ 'enable.idempotence': true, 'message.timeout.ms': 120000, 'linger.ms': 5 }))
  const acknowledged = []
  for (const value of sent) {
    acknowledged.push(producer.send({ topic, messages: [{ value, partition: 0 }] }))
    await sleep(2)
  }
  await Promise.all(acknowledged)
  await producer.disconnect()
  const settings = { 'session.timeout.ms': 6000, 'enable.auto.commit': false }
  assert.deepEqual(values(await read(address, unique('g'), topic, sent.length, settings, 120)), sent)
}

run({
  'produce-consume': async address => {
    const topic = unique('t')
    const sent = Array.from({ length: 1000 }, (_, n) => `${n}`)
    await send(address, topic, sent)
    assert.deepEqual(values(await read(address, unique('g'), topic, sent.length)), sent)
  },
  codecs: async address => {
    for (const compression of Object.values(CompressionTypes)) {
      const topic = unique(compression)
      const sent = Array.from({ length: 200 }, (_, n) => `${compression} ${n} ${'x'.repeat(200)}`)
      await send(address, topic, sent, { kafkaJS: { compression } })
      assert.deepEqual(values(await read(address, unique('g'), topic, sent.length, { 'check.crcs': true })), sent)
    }
  },
  'nulls-headers': async address => {
    const topic = unique('t')
    const producer = await connected(client(address).producer())
    await producer.send({ topic, messages: [{ key: null, value: null, headers: { a: ['1', '2'], b: '' } }] })
    await producer.send({ topic, messages: [{ key: 'k', value: '', timestamp: '1234567890123' }] })
    await producer.disconnect()
    const [{ message: first }, { message: second }] = await read(address, unique('g'), topic, 2)
    assert.deepEqual([first.key, first.value, first.headers.a.map(String), String(first.headers.b)], [null, null, ['1', '2'], ''])
    assert.deepEqual([String(second.key), String(second.value), second.timestamp], ['k', '', '1234567890123'])
  },
  group: async address => {
    for (const assigner of [PartitionAssigners.range, PartitionAssigners.cooperativeSticky]) {
      await groupsOf(address, { 'partition.assignment.strategy': assigner, 'session.timeout.ms': 6000 })
    }
  },
  'consumer-protocol': address => groupsOf(address, { 'group.protocol': 'consumer' }),
  'commit-resume': async address => {
    const [topic, groupId] = [unique('t'), unique('g')]
    await send(address, topic, Array.from({ length: 10 }, (_, n) => `${n}`))
    const { consumer, records } = await member(address, groupId, topic, { 'enable.auto.commit': false })
    await until('10 records', () => records.length >= 10)
    await consumer.commitOffsets([{ topic, partition: 0, offset: '4', metadata: 'note' }])
    const [{ offset, metadata }] = await consumer.committed([{ topic, partition: 0 }])
    assert.deepEqual([offset, metadata], ['4', 'note'])
    await consumer.disconnect()
    assert.deepEqual(values(await read(address, groupId, topic, 6)), ['4', '5', '6', '7', '8', '9'])
  },
  'seek-time': async address => {
    const topic = unique('t')
    const producer = await connected(client(address).producer())
    const messages = Array.from({ length: 10 }, (_, n) => ({ value: `${n}`, timestamp: `${1700000000000 + n * 1000}` }))
    await producer.send({ topic, messages })
    await producer.disconnect()
    const admin = await connected(client(address).admin())
    const [{ offset }] = await admin.fetchTopicOffsetsByTimestamp(topic, 1700000003500)
    assert.equal(offset, '4')
    const [{ low, high }] = await admin.fetchTopicOffsets(topic)
    assert.deepEqual([low, high], ['0', '10'])
    await admin.disconnect()
    const { consumer, records } = await member(address, unique('g'), topic)
    await until('all records', () => records.length === 10)
    consumer.seek({ topic, partition: 0, offset })
    await until('those from the offset on again', () => records.length === 16)
    assert.equal(values(records)[10], '4')
    await consumer.disconnect()
  },
  admin: async address => {
    const topic = unique('t')
    const admin = await connected(client(address).admin())
    const configEntries = [{ name: 'retention.ms', value: '3600000' }]
    assert.equal(await admin.createTopics({ topics: [{ topic, numPartitions: 3, replicationFactor: 1, configEntries }] }), true)
    assert.equal(await admin.createTopics({ topics: [{ topic }] }), false)
    assert.equal((await admin.fetchTopicMetadata({ topics: [topic] }))[0].partitions.length, 3)
    await send(address, topic, ['a', 'b', 'c'])
    const groupId = unique('g')
    const { consumer, records } = await member(address, groupId, topic)
    await until('all records', () => records.length === 3)
    assert.equal((await admin.describeGroups([groupId])).groups[0].members.length, 1)
    await consumer.disconnect()
    assert.ok((await admin.listGroups()).groups.some(group => group.groupId === groupId))
    const stored = await admin.fetchOffsets({ groupId, topics: [topic] })
    assert.equal(stored[0].partitions.reduce((sum, { offset }) => sum + Math.max(Number(offset), 0), 0), 3)
    await admin.deleteGroups([groupId])
    await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '-1' }] })
    await admin.deleteTopics({ topics: [topic] })
    assert.ok(!(await admin.listTopics()).includes(topic))
    await admin.disconnect()
  },
  transactions: async address => {
    const [topic, copy, groupId] = [unique('t'), unique('copy'), unique('g')]
    await send(address, topic, ['0', '1', '2'])
    const producer = await connected(client(address).producer({ 'transactional.id': unique('tx') }))
    for (const [value, end] of [['committed', 'commit'], ['aborted', 'abort'], ['committed too', 'commit']]) {
      const transaction = await producer.transaction()
      await transaction.send({ topic: copy, messages: [{ value }] })
      await transaction[end]()
    }
    assert.deepEqual(values(await read(address, unique('g'), copy, 2)), ['committed', 'committed too'])
    // Consume, transform, produce.
    const { consumer, records } = await member(address, groupId, topic, { 'enable.auto.commit': false })
    await until('all records', () => records.length === 3)
    const transaction = await producer.transaction()
    await transaction.send({ topic: copy, messages: [{ value: 'done' }] })
    await transaction.sendOffsets({ consumer, topics: [{ topic, partitions: [{ partition: 0, offset: '3' }] }] })
    await transaction.commit()
    assert.equal((await consumer.committed([{ topic, partition: 0 }]))[0].offset, '3')
    await consumer.disconnect()
    await producer.disconnect()
    // A producer with the same id fences this one.
    const older = await connected(client(address).producer({ 'transactional.id': 'fence' }))
    const newer = await connected(client(address).producer({ 'transactional.id': 'fence' }))
    const zombie = await older.transaction()
    await assert.rejects(zombie.send({ topic: copy, messages: [{ value: 'zombie' }] }))
    await assert.rejects(zombie.commit(), { code: ErrorCodes.ERR__FENCED })
    await newer.disconnect()
  },
  large: async address => {
    const topic = unique('t')
    await send(address, topic, Array.from({ length: 10 }, () => 'x'.repeat(900000)), { 'message.max.bytes': 1000000 })
    const records = await read(address, unique('g'), topic, 10, { 'fetch.message.max.bytes': 100000 })
    assert.deepEqual(records.map(({ message }) => message.value.length), Array.from({ length: 10 }, () => 900000))
  },
  'many-topics': async address => {
    const names = Array.from({ length: 100 }, () => unique('many'))
    const admin = await connected(client(address).admin())
    await admin.createTopics({ topics: names.map(topic => ({ topic })) })
    await admin.disconnect()
    const producer = await connected(client(address).producer())
    await producer.sendBatch({ topicMessages: names.map(topic => ({ topic, messages: [{ value: topic }] })) })
    await producer.disconnect()
    assert.deepEqual(values(await read(address, unique('g'), names, names.length)).sort(), names.sort())
  },
  kill: survive,
  disconnects: survive,
  'kill-transactions': async address => {
    const [topic, copy, groupId, count] = [unique('t'), unique('copy'), unique('g'), 1000]
    const sent = Array.from({ length: count }, (_, n) => `${n}`)
    await send(address, topic, sent, { 'message.timeout.ms': 120000 })
    let [producer, done] = [null, 0]
    const settings = { 'enable.auto.commit': false, 'session.timeout.ms': 6000, 'heartbeat.interval.ms': 300, 'js.consumer.max.batch.size': 10 }
    const consumer = await connected(client(address, quick).consumer({ kafkaJS: { groupId, fromBeginning: true }, ...settings }))
    await consumer.subscribe({ topics: [topic] })
    await consumer.run({
      eachBatch: async ({ batch }) => {
        // Records that are copied already are left out.
        const part = batch.messages.filter(({ offset }) => Number(offset) >= done)
        if (part.length === 0) return
        let transaction
        try {
          if (!producer) {
            const settings = { 'transactional.id': groupId, 'transaction.timeout.ms': 20000, 'socket.timeout.ms': 10000, 'message.timeout.ms': 19000 }
            producer = await connected(client(address, quick).producer(settings))
          }
          transaction = await producer.transaction()
          await transaction.send({ topic: copy, messages: part.map(({ value }) => ({ value })) })
          const next = Number(part.at(-1).offset) + 1
          await transaction.sendOffsets({ consumer, topics: [{ topic, partitions: [{ partition: 0, offset: `${next}` }] }] })
          await transaction.commit()
          done = next
          await sleep(100)
        } catch (error) {
          console.error(`${error}`)
          try {
            await transaction.abort()
          } catch {
            // The next one has the same id, and ends what this one began.
            await producer?.disconnect().catch(() => {})
            producer = null
          }
          // The client gives the records again.
          throw error
        }
      }
    })
    await until('all are copied', () => done >= count, 150)
    await consumer.disconnect()
    assert.deepEqual(values(await read(address, unique('g'), copy, count)), sent)
  }
})
