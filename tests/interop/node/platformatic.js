// @platformatic/kafka. It needs Node 22.

if (!Promise.withResolvers) process.exit(77)

const {
  Admin, Producer, Consumer, stringSerializers, stringDeserializers, roundRobinAssigner, cooperativeStickyAssigner
} = require('@platformatic/kafka')
const { assert, unique, until, sleep, run } = require('./scenarios')

const settings = address => ({ clientId: 'interop', bootstrapBrokers: [address], autocreateTopics: true })

// For the scenarios in which the server goes away.
const patient = { retries: 200, retryDelay: 100 }

const producerOf = (address, more = {}) => new Producer({ ...settings(address), serializers: stringSerializers, ...more })
const consumerOf = (address, groupId, more = {}) => new Consumer({ ...settings(address), groupId, deserializers: stringDeserializers, ...more })

async function send (address, topic, values, more = {}) {
  const producer = producerOf(address, more)
  await producer.send({ messages: values.map(value => ({ topic, value, partition: 0 })) })
  await producer.close()
}

// Reads as many records, those at the same offset once.
async function read (address, groupId, topics, count, more = {}) {
  const consumer = consumerOf(address, groupId, more)
  const stream = await consumer.consume({ autocommit: true, topics: [topics].flat(), mode: 'committed', fallbackMode: 'earliest' })
  const records = new Map()
  for await (const record of stream) {
    records.set(`${record.topic} ${record.partition} ${record.offset}`, record)
    if (records.size === count) break
  }
  await stream.close()
  await consumer.close(true)
  return [...records.values()].sort((one, other) => Number(one.offset - other.offset))
}

const values = records => records.map(({ value }) => value)

async function admin (address, work) {
  const one = new Admin(settings(address))
  const result = await work(one)
  await one.close()
  return result
}

async function groupsOf (address, more) {
  const [topic, groupId] = [unique('t'), unique('g')]
  await admin(address, one => one.createTopics({ topics: [topic], partitions: 4, replicas: 1 }))
  const members = [0, 1].map(() => consumerOf(address, groupId, more))
  const count = index => (members[index].assignments ?? []).flatMap(({ partitions }) => partitions).length
  const streams = []
  for (const member of members) {
    const stream = await member.consume({ topics: [topic], mode: 'latest' })
    stream.resume()
    streams.push(stream)
  }
  await until('both members have two', () => count(0) === 2 && count(1) === 2)
  await streams[0].close()
  await members[0].close(true)
  await until('the second member has all', () => count(1) === 4)
  await streams[1].close()
  await members[1].close(true)
}

// The server is killed, or the connections are cut, again and again meanwhile.
async function survive (address) {
  const topic = unique('t')
  const sent = Array.from({ length: 4000 }, (_, n) => `${n}`)
  const producer = producerOf(address, { ...patient, idempotent: true })
  for (let n = 0; n < sent.length; n += 10) {
    await producer.send({ messages: sent.slice(n, n + 10).map(value => ({ topic, value, partition: 0 })) })
    await sleep(20)
  }
  await producer.close()
  assert.deepEqual(values(await read(address, unique('g'), topic, sent.length, { ...patient, sessionTimeout: 6000, heartbeatInterval: 500 })), sent)
}

run({
  'produce-consume': async address => {
    const topic = unique('t')
    const sent = Array.from({ length: 1000 }, (_, n) => `${n}`)
    await send(address, topic, sent)
    assert.deepEqual(values(await read(address, unique('g'), topic, sent.length)), sent)
  },
  codecs: async address => {
    for (const compression of ['none', 'gzip', 'snappy', 'lz4', 'zstd']) {
      const topic = unique(compression)
      const sent = Array.from({ length: 200 }, (_, n) => `${compression} ${n} ${'x'.repeat(200)}`)
      await send(address, topic, sent, { compression })
      assert.deepEqual(values(await read(address, unique('g'), topic, sent.length)), sent)
    }
  },
  'nulls-headers': async address => {
    const topic = unique('t')
    const producer = producerOf(address)
    await producer.send({ messages: [{ topic, key: 'k', headers: { a: '1', b: '' } }] })
    await producer.send({ messages: [{ topic, key: 'k', value: 'v', timestamp: 1700000000000n }] })
    await producer.close()
    const [first, second] = await read(address, unique('g'), topic, 2)
    assert.deepEqual([first.key, first.value ?? null, [...first.headers]], ['k', null, [['a', '1'], ['b', '']]])
    assert.deepEqual([second.value, second.timestamp], ['v', 1700000000000n])
  },
  group: async address => {
    for (const partitionAssigner of [roundRobinAssigner, cooperativeStickyAssigner].filter(Boolean)) {
      await groupsOf(address, { partitionAssigner, sessionTimeout: 6000, heartbeatInterval: 500 })
    }
  },
  'consumer-protocol': address => groupsOf(address, { groupProtocol: 'consumer' }),
  'commit-resume': async address => {
    const [topic, groupId] = [unique('t'), unique('g')]
    await send(address, topic, Array.from({ length: 10 }, (_, n) => `${n}`))
    const consumer = consumerOf(address, groupId)
    const stream = await consumer.consume({ autocommit: false, topics: [topic], mode: 'committed', fallbackMode: 'earliest' })
    for await (const record of stream) {
      if (record.offset === 3n) {
        await record.commit()
        break
      }
    }
    const stored = await consumer.listCommittedOffsets({ topics: [{ topic, partitions: [0] }] })
    assert.deepEqual(stored.get(topic), [4n])
    await stream.close()
    await consumer.close(true)
    assert.deepEqual(values(await read(address, groupId, topic, 6)), ['4', '5', '6', '7', '8', '9'])
  },
  'seek-time': async address => {
    const topic = unique('t')
    const producer = producerOf(address)
    await producer.send({ messages: Array.from({ length: 10 }, (_, n) => ({ topic, value: `${n}`, timestamp: BigInt(1700000000000 + n * 1000) })) })
    await producer.close()
    const consumer = consumerOf(address, unique('g'))
    const found = (await consumer.listOffsetsWithTimestamps({ topics: [topic], timestamp: 1700000003500n })).get(topic).get(0)
    assert.deepEqual([found.offset, found.timestamp], [4n, 1700000004000n])
    assert.deepEqual((await consumer.listOffsets({ topics: [topic], timestamp: -1n })).get(topic), [10n])
    const stream = await consumer.consume({ topics: [topic], mode: 'manual', offsets: [{ topic, partition: 0, offset: found.offset }] })
    for await (const record of stream) {
      assert.equal(record.value, '4')
      break
    }
    await stream.close()
    await consumer.close(true)
  },
  admin: address => admin(address, async one => {
    const [topic, groupId] = [unique('t'), unique('g')]
    await one.createTopics({ topics: [topic], partitions: 2, replicas: 1 })
    await one.createPartitions({ topics: [{ name: topic, count: 3, assignments: null }] })
    assert.equal((await one.metadata({ topics: [topic], forceUpdate: true })).topics.get(topic).partitionsCount, 3)
    await one.incrementalAlterConfigs({ resources: [{ resourceType: 2, resourceName: topic, configs: [{ name: 'retention.ms', configOperation: 0, value: '3600000' }] }] })
    const [{ configs }] = await one.describeConfigs({ resources: [{ resourceType: 2, resourceName: topic, configurationKeys: ['retention.ms'] }] })
    assert.equal(configs[0].value, '3600000')
    await send(address, topic, ['a', 'b', 'c'])
    await read(address, groupId, topic, 3)
    assert.ok((await one.listGroups()).has(groupId))
    assert.equal((await one.describeGroups({ groups: [groupId] })).get(groupId).members.size, 0)
    const [{ topics }] = await one.listConsumerGroupOffsets({ groups: [groupId] })
    assert.equal(topics[0].partitions.find(({ partitionIndex }) => partitionIndex === 0).committedOffset, 3n)
    await one.deleteGroups({ groups: [groupId] })
    const [{ partitions }] = await one.deleteRecords({ topics: [{ name: topic, partitions: [{ partition: 0, offset: 2n }] }] })
    assert.equal(partitions[0].lowWatermark, 2n)
    await one.deleteTopics({ topics: [topic] })
    assert.ok(!(await one.listTopics()).includes(topic))
  }),
  transactions: async address => {
    const [topic, copy, groupId] = [unique('t'), unique('copy'), unique('g')]
    await send(address, topic, ['0', '1', '2'])
    await admin(address, one => one.createTopics({ topics: [copy], partitions: 1, replicas: 1 }))
    const producer = producerOf(address, { transactionalId: unique('tx'), idempotent: true })
    for (const [value, end] of [['committed', 'commit'], ['aborted', 'abort'], ['committed too', 'commit']]) {
      const transaction = await producer.beginTransaction()
      await transaction.send({ messages: [{ topic: copy, value }] })
      await transaction[end]()
    }
    assert.deepEqual(values(await read(address, unique('g'), copy, 2, { isolationLevel: 1 })), ['committed', 'committed too'])
    // Consume, transform, produce.
    const consumer = consumerOf(address, groupId)
    const stream = await consumer.consume({ autocommit: false, topics: [topic], mode: 'committed', fallbackMode: 'earliest' })
    for await (const record of stream) {
      if (record.offset < 2n) continue
      const transaction = await producer.beginTransaction()
      await transaction.addConsumer(consumer)
      await transaction.send({ messages: [{ topic: copy, value: 'done' }] })
      await transaction.addOffset(record)
      await transaction.commit()
      break
    }
    assert.deepEqual((await consumer.listCommittedOffsets({ topics: [{ topic, partitions: [0] }] })).get(topic), [3n])
    await stream.close()
    await consumer.close(true)
    await producer.close()
    // A producer with the same id fences this one.
    const transactionalId = unique('fence')
    const [older, newer] = [0, 1].map(() => producerOf(address, { transactionalId, idempotent: true, retries: 0 }))
    const zombie = await older.beginTransaction()
    // Without these, this client sends 0 and 0, which fences the newer one itself.
    await newer.beginTransaction({ producerId: -1n, producerEpoch: -1 })
    await assert.rejects(async () => {
      await zombie.send({ messages: [{ topic: copy, value: 'zombie' }] })
      await zombie.commit()
    })
  },
  large: async address => {
    const topic = unique('t')
    for (let n = 0; n < 10; n++) await send(address, topic, ['x'.repeat(900000)])
    const records = await read(address, unique('g'), topic, 10, { maxBytesPerPartition: 100000 })
    assert.deepEqual(records.map(({ value }) => value.length), Array.from({ length: 10 }, () => 900000))
  },
  'many-topics': async address => {
    const names = Array.from({ length: 100 }, () => unique('many'))
    await admin(address, one => one.createTopics({ topics: names, partitions: 1, replicas: 1 }))
    const producer = producerOf(address)
    await producer.send({ messages: names.map(topic => ({ topic, value: topic })) })
    await producer.close()
    assert.deepEqual(values(await read(address, unique('g'), names, names.length)).sort(), names.sort())
  },
  kill: survive,
  disconnects: survive
})
