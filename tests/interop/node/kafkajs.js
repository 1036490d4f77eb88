// kafkajs.

const zlib = require('node:zlib')
const { Kafka, CompressionCodecs, CompressionTypes, logLevel } = require('kafkajs')
const SnappyCodec = require('kafkajs-snappy')
const lz4 = require('lz4js')
const { assert, unique, until, sleep, run } = require('./scenarios')

CompressionCodecs[CompressionTypes.Snappy] = SnappyCodec
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async encoder => Buffer.from(lz4.compress(encoder.buffer)),
  decompress: async buffer => Buffer.from(lz4.decompress(buffer))
})
if (zlib.zstdCompressSync) {
  CompressionCodecs[CompressionTypes.ZSTD] = () => ({
    compress: async encoder => zlib.zstdCompressSync(encoder.buffer),
    decompress: async buffer => zlib.zstdDecompressSync(buffer)
  })
}

const client = (address, settings = {}) => new Kafka({ clientId: 'interop', brokers: [address], logLevel: logLevel.NOTHING, ...settings })

// For the scenarios in which the server goes away.
const patient = { retry: { initialRetryTime: 100, maxRetryTime: 1000, retries: 100 } }

async function send (address, topic, values, settings = {}, ofClient = {}) {
  const producer = client(address, ofClient).producer()
  await producer.connect()
  await producer.send({ topic, messages: values.map(value => ({ value })), ...settings })
  await producer.disconnect()
}

// Reads as many records with a member of a group.
async function read (address, groupId, topics, count) {
  const consumer = client(address).consumer({ groupId, sessionTimeout: 6000 })
  const records = []
  await consumer.connect()
  await consumer.subscribe({ topics: [topics].flat(), fromBeginning: true })
  await consumer.run({ eachMessage: async record => { records.push(record) } })
  await until(`${count} records`, () => records.length >= count)
  await consumer.disconnect()
  return records
}

// Reads the records of a topic with one partition. Those that are read again after the server was away are left out.
async function readOnce (address, topic, count) {
  const consumer = client(address, patient).consumer({ groupId: unique('g'), sessionTimeout: 6000, heartbeatInterval: 500 })
  const records = new Map()
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({ eachMessage: async record => { records.set(Number(record.message.offset), record) } })
  await until(`${count} records`, () => records.size >= count, 120)
  await consumer.disconnect()
  return [...records.entries()].sort(([one], [other]) => one - other).map(([, record]) => record)
}

// The server is killed, or the connections are cut, again and again meanwhile.
async function survive (address) {
  const topic = unique('t')
  const sent = Array.from({ length: 4000 }, (_, n) => `${n}`)
  const producer = client(address, patient).producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  for (let n = 0; n < sent.length; n += 10) {
    await producer.send({ topic, messages: sent.slice(n, n + 10).map(value => ({ value })) })
    await sleep(20)
  }
  await producer.disconnect()
  assert.deepEqual(values(await readOnce(address, topic, sent.length)), sent)
}

const values = records => records.map(({ message }) => message.value?.toString() ?? null)

run({
  'produce-consume': async address => {
    const topic = unique('t')
    // As in its users' programs: the topic does not exist yet.
    await send(address, topic, ['New order created'])
    assert.deepEqual(values(await read(address, unique('g'), topic, 1)), ['New order created'])
  },
  codecs: async address => {
    for (const compression of Object.values(CompressionTypes)) {
      // Older versions of Node have no zstd.
      if (compression === CompressionTypes.ZSTD && !zlib.zstdCompressSync) continue
      const topic = unique('t')
      const sent = Array.from({ length: 100 }, (_, n) => `${n} ${'x'.repeat(200)}`)
      await send(address, topic, sent, { compression })
      assert.deepEqual(values(await read(address, unique('g'), topic, 100)), sent)
    }
  },
  'nulls-headers': async address => {
    const topic = unique('t')
    const producer = client(address).producer()
    await producer.connect()
    await producer.send({ topic, messages: [{ key: null, value: null, headers: { a: ['1', '2'], b: '' } }] })
    await producer.disconnect()
    const [{ message }] = await read(address, unique('g'), topic, 1)
    assert.equal(message.key, null)
    assert.equal(message.value, null)
    assert.deepEqual(message.headers.a.map(String), ['1', '2'])
  },
  group: async address => {
    const [topic, groupId] = [unique('t'), unique('g')]
    const admin = client(address).admin()
    await admin.connect()
    await admin.createTopics({ topics: [{ topic, numPartitions: 4 }] })
    const members = [0, 1].map(() => client(address).consumer({ groupId, sessionTimeout: 6000, rebalanceTimeout: 6000 }))
    const sizes = [0, 0]
    for (const [index, member] of members.entries()) {
      member.on(member.events.GROUP_JOIN, ({ payload }) => {
        sizes[index] = Object.values(payload.memberAssignment).flat().length
      })
      await member.connect()
      await member.subscribe({ topic })
      await member.run({ eachMessage: async () => {} })
    }
    await until('both members have two', () => sizes[0] === 2 && sizes[1] === 2)
    await members[0].disconnect()
    await until('the second member has all', () => sizes[1] === 4)
    await members[1].disconnect()
    await admin.disconnect()
  },
  'commit-resume': async address => {
    const [topic, groupId] = [unique('t'), unique('g')]
    await send(address, topic, ['0', '1', '2', '3'])
    await read(address, groupId, topic, 4)
    const admin = client(address).admin()
    await admin.connect()
    await admin.setOffsets({ groupId, topic, partitions: [{ partition: 0, offset: '2' }] })
    assert.deepEqual(values(await read(address, groupId, topic, 2)), ['2', '3'])
    await admin.disconnect()
  },
  'seek-time': async address => {
    const topic = unique('t')
    const producer = client(address).producer()
    await producer.connect()
    const messages = Array.from({ length: 10 }, (_, n) => ({ value: `${n}`, timestamp: `${1700000000000 + n * 1000}` }))
    await producer.send({ topic, messages })
    await producer.disconnect()
    const admin = client(address).admin()
    await admin.connect()
    const [{ offset }] = await admin.fetchTopicOffsetsByTimestamp(topic, 1700000003500)
    assert.equal(offset, '4')
    await admin.disconnect()
  },
  admin: async address => {
    const topic = unique('t')
    const admin = client(address).admin()
    await admin.connect()
    assert.equal(await admin.createTopics({ topics: [{ topic, numPartitions: 2 }] }), true)
    await admin.createPartitions({ topicPartitions: [{ topic, count: 3 }] })
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    assert.equal(topics[0].partitions.length, 3)
    await admin.alterConfigs({ validateOnly: false, resources: [{ type: 2, name: topic, configEntries: [{ name: 'retention.ms', value: '3600000' }] }] })
    const { resources } = await admin.describeConfigs({ includeSynonyms: false, resources: [{ type: 2, name: topic, configNames: ['retention.ms'] }] })
    assert.equal(resources[0].configEntries[0].configValue, '3600000')
    assert.equal((await admin.describeCluster()).brokers.length, 1)
    await send(address, topic, ['a', 'b', 'c'])
    const groupId = unique('g')
    await read(address, groupId, topic, 3)
    assert.ok((await admin.listGroups()).groups.some(group => group.groupId === groupId))
    assert.equal((await admin.describeGroups([groupId])).groups[0].state, 'Empty')
    await admin.deleteGroups([groupId])
    await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '-1' }] })
    await admin.deleteTopics({ topics: [topic] })
    assert.ok(!(await admin.listTopics()).includes(topic))
    await admin.disconnect()
  },
  transactions: async address => {
    const topic = unique('t')
    const producer = client(address).producer({ transactionalId: unique('tx'), idempotent: true, maxInFlightRequests: 1 })
    await producer.connect()
    for (const [value, end] of [['committed', 'commit'], ['aborted', 'abort'], ['committed too', 'commit']]) {
      const transaction = await producer.transaction()
      await transaction.send({ topic, messages: [{ value }] })
      await transaction[end]()
    }
    const transaction = await producer.transaction()
    const groupId = unique('g')
    await transaction.sendOffsets({ consumerGroupId: groupId, topics: [{ topic, partitions: [{ partition: 0, offset: '1' }] }] })
    await transaction.commit()
    await producer.disconnect()
    assert.deepEqual(values(await read(address, unique('g'), topic, 2)), ['committed', 'committed too'])
    const admin = client(address).admin()
    await admin.connect()
    assert.equal((await admin.fetchOffsets({ groupId, topics: [topic] }))[0].partitions[0].offset, '1')
    await admin.disconnect()
  },
  large: async address => {
    const topic = unique('t')
    for (let n = 0; n < 5; n++) await send(address, topic, ['x'.repeat(900000)])
    const records = await read(address, unique('g'), topic, 5)
    assert.deepEqual(records.map(({ message }) => message.value.length), [900000, 900000, 900000, 900000, 900000])
  },
  'many-topics': async address => {
    const names = Array.from({ length: 100 }, () => unique('many'))
    const admin = client(address).admin()
    await admin.connect()
    await admin.createTopics({ topics: names.map(topic => ({ topic })) })
    await admin.disconnect()
    const producer = client(address).producer()
    await producer.connect()
    await producer.sendBatch({ topicMessages: names.map(topic => ({ topic, messages: [{ value: topic }] })) })
    await producer.disconnect()
    const found = values(await read(address, unique('g'), names, names.length))
    assert.deepEqual(found.sort(), names.sort())
  },
  kill: survive,
  disconnects: survive,
  'kill-transactions': async address => {
    const [topic, copy, groupId, count] = [unique('t'), unique('copy'), unique('g'), 1000]
    const sent = Array.from({ length: count }, (_, n) => `${n}`)
    await send(address, topic, sent, {}, patient)
    const source = values(await readOnce(address, topic, count))
    // This client does not wait for open transactions when it asks for a group's offsets, so the position is kept here, and the
    // stored one is looked up when no transaction is open.
    const admin = client(address, patient).admin()
    await admin.connect()
    const limit = Date.now() + 150000
    let [producer, done] = [null, 0]
    while (done < count) {
      if (Date.now() > limit) throw new Error(`${done} of ${count} records are copied`)
      let transaction
      try {
        if (!producer) {
          producer = client(address, patient).producer({ transactionalId: groupId, idempotent: true, maxInFlightRequests: 1, transactionTimeout: 20000 })
          await producer.connect()
          const [{ partitions: [{ offset }] }] = await admin.fetchOffsets({ groupId, topics: [topic] })
          done = Math.max(Number(offset), 0)
        }
        const part = source.slice(done, done + 10)
        transaction = await producer.transaction()
        await transaction.send({ topic: copy, messages: part.map(value => ({ value })) })
        const partitions = [{ partition: 0, offset: `${done + part.length}` }]
        await transaction.sendOffsets({ consumerGroupId: groupId, topics: [{ topic, partitions }] })
        await transaction.commit()
        done += part.length
        await sleep(100)
      } catch (error) {
        console.error(`${error}`)
        // The next one has the same id, and ends what this one began.
        await producer.disconnect().catch(() => {})
        producer = null
      }
    }
    await admin.disconnect()
    assert.deepEqual(values(await readOnce(address, copy, count)), sent)
  }
})
