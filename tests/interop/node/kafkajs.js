// kafkajs.

const { Kafka, CompressionTypes, logLevel } = require('kafkajs')
const { assert, unique, until, run } = require('./scenarios')

const client = address => new Kafka({ clientId: 'interop', brokers: [address], logLevel: logLevel.NOTHING })

async function send (address, topic, values, settings = {}) {
  const producer = client(address).producer()
  await producer.connect()
  await producer.send({ topic, messages: values.map(value => ({ value })), ...settings })
  await producer.disconnect()
}

// Reads as many records with a member of a group.
async function read (address, groupId, topic, count, each = async () => {}) {
  const consumer = client(address).consumer({ groupId, sessionTimeout: 6000 })
  const records = []
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({ eachMessage: async record => { records.push(record); await each(record) } })
  await until(`${count} records`, () => records.length >= count)
  await consumer.disconnect()
  return records
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
    for (const compression of [CompressionTypes.None, CompressionTypes.GZIP]) {
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
  }
})
