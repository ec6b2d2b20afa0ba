// Runs in the page, before its own scripts: the recorder of the sources "web"
// (semantic actions) and "rrweb" (the events of rrweb, unchanged).
// Both are handed to record.mjs through window.reelAction.
(() => {
  if (window !== top) return // rrweb makes a frame of its own, which is not to be recorded

  const INPUT_PAUSE_MS = 700
  const SCROLL_PAUSE_MS = 200

  const send = (source, timestamp, type, target, data) =>
    window.reelAction(JSON.stringify({ source, timestamp, type, target, data }))
  const web = (type, target, data) => send('web', Date.now(), type, target, data)

  const isField = (element) => element.matches('input, textarea')
  const label = (element) =>
    isField(element) ? element.labels[0].firstChild.textContent : element.textContent
  const selector = (element) =>
    element.id ? `#${element.id}` : `${element.parentElement.localName} > ${element.localName}`

  // navigation
  let current = null
  const navigated = () => {
    const from = current
    current = location.pathname
    web('navigation', current, { from, url: location.href })
  }
  const pushState = history.pushState
  history.pushState = function (...args) {
    pushState.apply(this, args)
    navigated()
  }
  addEventListener('popstate', navigated)
  navigated()

  // click: buttons, links and fields
  addEventListener('click', (event) => {
    const element = event.target.closest('button, a, input, textarea')
    if (!element) return
    const { clientX: x, clientY: y } = event
    web('click', label(element), { x, y, selector: selector(element) })
  }, true)

  // input: one action after each pause in typing, with the length only
  const waiting = new Map()
  const typed = (element) => {
    clearTimeout(waiting.get(element))
    if (!waiting.delete(element)) return
    web('input', label(element), { selector: selector(element), length: element.value.length })
  }
  addEventListener('input', ({ target }) => {
    clearTimeout(waiting.get(target))
    waiting.set(target, setTimeout(typed, INPUT_PAUSE_MS, target))
  }, true)
  addEventListener('change', ({ target }) => typed(target), true)

  // scroll: one action after each pause
  let scrolling
  addEventListener('scroll', () => {
    clearTimeout(scrolling)
    scrolling = setTimeout(() => web('scroll', location.pathname, { x: scrollX, y: scrollY }), SCROLL_PAUSE_MS)
  })

  // error
  const failed = (error, kind) => web('error', error.name, { message: error.message, kind, path: location.pathname })
  addEventListener('error', (event) => failed(event.error, 'error'))
  addEventListener('unhandledrejection', (event) => failed(event.reason, 'unhandledrejection'))

  rrweb.record({
    maskAllInputs: true,
    emit: (event) => send('rrweb', event.timestamp, 'rrweb', '', event),
  })
})()
