// The "Notes" blog: one page, a small JSON API, everything kept in memory.
// Run alone with `node site/server.mjs`, or import startServer.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

const page = readFileSync(new URL('index.html', import.meta.url))

const seed = [
  ['2026-08-30', 'Why I keep a paper list', 'Three lines on paper get done. Thirty lines in an app get sorted.'],
  ['2026-08-22', 'A better cup of green tea', 'Cooler water, shorter time. Eighty degrees and two minutes is enough.'],
  ['2026-08-11', 'Walking to the far station', 'It takes twenty minutes longer and it is the best part of the day.'],
  ['2026-07-29', 'Small tools, sharp tools', 'A program that does one thing is a program you can finish.'],
  ['2026-07-15', 'The fern came back', 'I had given up on it in March. It needed less sun and more patience.'],
  ['2026-07-02', 'Reading two books at once', 'One for the morning, one for the evening, and they must not rhyme.'],
  ['2026-06-20', 'Iced tea for a hot week', 'Brew it cold overnight, add lemon in the morning, share it by noon.'],
  ['2026-06-04', 'First note', 'Hello. This is a place for short notes.'],
]

// The share endpoint is broken on purpose: every call of it fails.
class ShareFailed extends Error {
  name = 'ShareFailed'
}

async function readJson(request) {
  let text = ''
  for await (const chunk of request) text += chunk
  return JSON.parse(text)
}

async function answer(posts, request, url) {
  const route = `${request.method} ${url.pathname}`
  const [, id, share] = url.pathname.match(/^\/api\/posts\/(\d+)(\/share)?$/) ?? []

  if (route === 'GET /api/posts') {
    await sleep(25)
    const query = (url.searchParams.get('q') ?? '').toLowerCase()
    return [200, posts.filter((post) => `${post.title} ${post.body}`.toLowerCase().includes(query))]
  }
  if (route === 'POST /api/posts') {
    const { title, body } = await readJson(request)
    await sleep(110)
    const post = { id: posts.length + 1, date: new Date().toISOString().slice(0, 10), title, body }
    posts.unshift(post)
    return [201, post]
  }
  if (request.method === 'GET' && id && !share) {
    await sleep(15)
    const post = posts.find((post) => post.id === Number(id))
    return post ? [200, post] : [404, { error: 'NotFound' }]
  }
  if (request.method === 'POST' && share) {
    await sleep(70)
    throw new ShareFailed('the share service does not answer')
  }
  if (request.method === 'GET' && !url.pathname.startsWith('/api/')) return [200, page]
  return [404, { error: 'NotFound' }]
}

// onAction is called with { timestamp, type, target, data } for every request,
// and once more for the error of a failing one.
export async function startServer({ port, onAction = () => {} }) {
  const posts = seed.map(([date, title, body], i) => ({ id: seed.length - i, date, title, body }))

  const server = createServer(async (request, response) => {
    const timestamp = Date.now()
    const started = performance.now()
    const url = new URL(request.url, 'http://localhost')
    const target = `${request.method} ${url.pathname}`

    let status, body, failure
    try {
      [status, body] = await answer(posts, request, url)
    } catch (error) {
      [status, body, failure] = [500, { error: error.name }, error]
    }

    const isPage = body === page
    response.writeHead(status, { 'content-type': isPage ? 'text/html; charset=utf-8' : 'application/json' })
    response.end(isPage ? page : JSON.stringify(body))

    const duration_ms = Math.round((performance.now() - started) * 10) / 10
    onAction({ timestamp, type: 'request', target, data: { status, duration_ms } })
    if (failure) {
      const data = { message: failure.message, request: target, status }
      onAction({ timestamp: Date.now(), type: 'error', target: failure.name, data })
    }
  })

  await new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, '127.0.0.1', resolve)
  })
  return server
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const port = Number(process.env.PORT ?? 8787)
  await startServer({ port, onAction: (action) => console.log(JSON.stringify(action)) })
  console.log(`http://127.0.0.1:${port}/`)
}
