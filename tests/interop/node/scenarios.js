// What all programs of this folder have in common: a program is called with an address and the name of a scenario.

const assert = require('node:assert/strict')
const { randomUUID } = require('node:crypto')

// The exit code of a scenario that a client cannot do.
const SKIPPED = 77

const unique = name => `${name}-${randomUUID().slice(0, 8)}`

const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds))

async function until (what, done, seconds = 60) {
  const limit = Date.now() + seconds * 1000
  while (!(await done())) {
    if (Date.now() > limit) throw new Error(`not within ${seconds} s: ${what}`)
    await sleep(50)
  }
}

function run (scenarios) {
  const [address, name] = process.argv.slice(2)
  if (!scenarios[name]) process.exit(SKIPPED)
  scenarios[name](address).then(() => process.exit(0), error => {
    console.error(error)
    process.exit(1)
  })
}

module.exports = { assert, unique, until, sleep, run }
