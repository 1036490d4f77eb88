// @platformatic/kafka. It needs Node 22.

if (!Promise.withResolvers) process.exit(77)

const { Admin, Producer, Consumer, stringSerializers, stringDeserializers } = require('@platformatic/kafka')
const { assert, unique, run } = require('./scenarios')

const settings = address => ({ clientId: 'interop', bootstrapBrokers: [address] })

async function send (address, topic, values) {
  const producer = new Producer({ ...settings(address), serializers: stringSerializers, autocreateTopics: true })
  await producer.send({ messages: values.map(value => ({ topic, key: 'k', value, headers: { h: '1' } })) })
  await producer.close()
}

async function read (address, groupId, topic, count) {
  const consumer = new Consumer({ ...settings(address), groupId, deserializers: stringDeserializers })
  const stream = await consumer.consume({ autocommit: true, topics: [topic], mode: 'committed', fallbackMode: 'earliest' })
  const records = []
  for await (const record of stream) {
    records.push(record)
    if (records.length === count) break
  }
  await stream.close()
  await consumer.close(true)
  return records
}

run({
  'produce-consume': async address => {
    const topic = unique('t')
    await send(address, topic, ['a', 'b', 'c'])
    const records = await read(address, unique('g'), topic, 3)
    assert.deepEqual(records.map(({ value }) => value), ['a', 'b', 'c'])
    assert.equal(records[0].headers.get('h'), '1')
  },
  admin: async address => {
    const topic = unique('t')
    const admin = new Admin(settings(address))
    await admin.createTopics({ topics: [topic], partitions: 2, replicas: 1 })
    assert.equal((await admin.metadata({ topics: [topic] })).topics.get(topic).partitionsCount, 2)
    await admin.deleteTopics({ topics: [topic] })
    await admin.close()
  }
})
