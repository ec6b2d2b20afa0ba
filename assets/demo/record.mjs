// Records session.jsonl.gz: starts the blog in site/, lets a script use it in a
// real Chromium, and writes what the page, rrweb and the server saw as one session.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { chromium } from 'playwright-core'
import { startServer } from './site/server.mjs'

const PORT = Number(process.env.PORT ?? 8787)
const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium'
const SESSION = 'demo'
const USER = { id: 'ada', email: 'ada@example.com', name: 'Ada Example' }

const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const between = (low, high) => low + Math.random() * (high - low)

const actions = []
const server = await startServer({
  port: PORT,
  onAction: (action) => actions.push({ source: 'api', ...action }),
})
const profile = mkdtempSync(join(tmpdir(), 'reel-demo-'))
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: CHROMIUM,
  headless: true,
  viewport: { width: 1024, height: 640 },
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
  ],
})
try {
  const page = browser.pages()[0]
  await page.exposeFunction('reelAction', (json) => { actions.push(JSON.parse(json)) })
  const rrweb = readFileSync(here('node_modules/rrweb/umd/rrweb.min.js'), 'utf8')
  await page.addInitScript({ content: `${rrweb};\n${readFileSync(here('capture.js'), 'utf8')}` })
  await page.goto(`http://127.0.0.1:${PORT}/`)
  page.on('pageerror', (error) => console.log(`in the page: ${error.name}: ${error.message}`))
  await visit(page)
} finally {
  await browser.close()
  server.close()
  rmSync(profile, { recursive: true, force: true })
}
write(actions)

// What the visitor does.
async function visit(page) {
  let at = { x: 820, y: 420 }
  await page.mouse.move(at.x, at.y)

  // Moves along a slight arc, slow at both ends, to somewhere inside the element.
  const moveTo = async (selector) => {
    const box = await page.locator(selector).boundingBox()
    const to = {
      x: box.x + Math.min(box.width, 400) * between(0.35, 0.65),
      y: box.y + Math.min(box.height, 100) * between(0.35, 0.65),
    }
    const from = at
    const arc = between(-30, 30)
    const steps = 24
    for (let i = 1; i <= steps; i++) {
      const t = (1 - Math.cos((Math.PI * i) / steps)) / 2
      const bend = Math.sin(Math.PI * t) * arc
      at = { x: from.x + (to.x - from.x) * t + bend, y: from.y + (to.y - from.y) * t - bend }
      await page.mouse.move(at.x, at.y)
      await sleep(between(14, 24))
    }
  }
  const press = () => page.mouse.down().then(() => sleep(between(50, 90))).then(() => page.mouse.up())
  const click = async (selector) => {
    await page.locator(selector).waitFor()
    await moveTo(selector)
    await sleep(between(120, 260))
    await press()
  }
  const type = async (text) => {
    for (const character of text) {
      await page.keyboard.type(character)
      await sleep(character === ' ' ? between(70, 140) : between(35, 85))
    }
  }
  const scroll = async (distance) => {
    for (let i = 0; i < 6; i++) {
      await page.mouse.wheel(0, distance / 6)
      await sleep(between(60, 110))
    }
  }

  // Look at the list.
  await sleep(1200)
  await scroll(420)
  await sleep(1100)
  await scroll(-420)
  await sleep(500)

  // Search it, and open what was found.
  await click('#search')
  await sleep(300)
  await type('tea')
  await sleep(1000)
  await click('article:nth-of-type(2) h2 a')
  await sleep(1500)
  await click('#back')
  await sleep(700)

  // Write a note.
  await click('#create')
  await sleep(600)
  await click('#title')
  await sleep(250)
  await type('Rain on the roof')
  await sleep(300)
  await click('#body')
  await sleep(300)
  await type('It started at four. ')
  await sleep(900)
  await type('I stayed in bed and counted the drops until six.')
  await sleep(500)
  await click('#publish')
  await page.locator('#share').waitFor()
  await sleep(900)

  // Try to share it, and get angry.
  await click('#share')
  await sleep(between(170, 210))
  await press()
  await sleep(between(170, 210))
  await press()
  await sleep(1600)

  // Give up.
  await click('#back')
  await sleep(1500)
}

function write(actions) {
  actions.sort((a, b) => a.timestamp - b.timestamp) // stable: equal times keep their order
  const seq = {}
  const lines = actions.map(({ source, timestamp, type, target, data }, i) => JSON.stringify({
    session: SESSION,
    user: i === 0 ? USER : undefined,
    source,
    seq: (seq[source] = (seq[source] ?? 0) + 1),
    timestamp,
    type,
    target,
    data,
  }))
  if (!seq.web || !seq.rrweb || !seq.api) throw new Error(`a source recorded nothing: ${JSON.stringify(seq)}`)

  // zlib writes neither a file name nor a time into the header.
  const packed = gzipSync(lines.join('\n') + '\n', { level: 9 })
  writeFileSync(here('session.jsonl.gz'), packed)

  const seconds = (actions.at(-1).timestamp - actions[0].timestamp) / 1000
  console.log(`${lines.length} actions in ${seconds} s, ${packed.length} bytes`, seq)
}
