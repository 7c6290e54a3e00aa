// Drives the page in a real browser and prints what it found as JSON:
//   node test/browser.mjs '{"chromium": PATH, "address": URL, "photos": [{"file": PNG, "conf": 0.25}, ...],
//                           "samples": {"bus.jpg": PATH, ...}, "models": {"other.onnx": PATH, ...}}'
// tests/examples/test_web.py runs it and compares the figures with Python's. "samples" and "models" are answered for addresses
// of that name. An image of the page as it opens, of a server that runs, without any test:
//   node test/browser.mjs '{"chromium": PATH, "address": URL, "screenshot": JPG}'
import { readFile } from 'node:fs/promises';

import { chromium } from 'playwright-core';

const { chromium: executablePath, address, photos, samples = {}, models = {}, screenshot } = JSON.parse(process.argv[2]);
const FLAGS = ['--headless', '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];
const SLOW = { timeout: 150_000 };
const found = { elsewhere: [], console: [], photos: [], wrong: {} };

async function open(browser, search = '') {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  page.on('request', (request) => {
    const url = new URL(request.url());
    if (!['data:', 'blob:'].includes(url.protocol) && url.host !== new URL(address).host) found.elsewhere.push(url.href);
  });
  page.on('console', (message) => message.type() === 'error' && found.console.push(message.text()));
  page.on('pageerror', (error) => found.console.push(String(error)));
  for (const [name, path] of Object.entries({ ...samples, ...models })) await page.route(`**/${name}`, (route) => route.fulfill({ path }));
  await page.goto(address + search);
  await page.waitForFunction(() => window.erpose && (window.erpose.ready || window.erpose.error), null, SLOW);
  return page;
}

async function choose(page, file) {
  const before = await page.evaluate(() => window.erpose.frames);
  await page.setInputFiles('#file', file);
  await page.waitForFunction((n) => window.erpose.frames > n || window.erpose.error, before, SLOW);
  return page.evaluate(() => ({
    ...window.erpose,
    label: document.querySelector('#canvas').getAttribute('aria-label'),
    listed: document.querySelectorAll('#list li').length,
    time: document.querySelector('#time').textContent,
  }));
}

async function complaint(page, pattern = '.') {
  await page.waitForFunction((text) => new RegExp(text).test(window.erpose.error ?? ''), pattern, SLOW);
  return page.textContent('#error');
}

const launch = (more = ['--disable-gpu']) => chromium.launch({ executablePath, args: [...FLAGS, ...more], headless: true });

let browser = await launch();
if (screenshot) {
  const page = await open(browser);
  for (const n of [2, 1]) await Promise.all([page.click(`#samples button:nth-child(${n})`), page.waitForFunction((k) => window.erpose.frames === k, 4 - n, SLOW)]);
  await page.screenshot({ path: screenshot, quality: 90 }); // of the third run, as the first is slow
  await browser.close();
  process.exit();
}
try {
  // at once: the sample photo that lies beside the page
  let page = await open(browser);
  const opened = () => page.evaluate(() => ({ ...window.erpose, pressed: document.querySelector('#samples [aria-pressed=true]')?.title }));
  found.opened = await opened();
  const second = Object.keys(samples)[1];
  await page.click(`#samples [title="${second}"]`);
  await page.waitForFunction(() => window.erpose.frames > 1, null, SLOW);
  found.second = await opened();
  for (const { file, conf } of photos) {
    page = await open(browser, `?conf=${conf}`);
    const cold = await choose(page, file);
    found.photos.push({ cold, warm: await choose(page, file) });
  }
  found.isolated = await page.evaluate(() => self.crossOriginIsolated);
  const { file, conf } = photos[0];
  const image = (await readFile(file)).toString('base64');

  // the parts by themselves
  found.parts = await page.evaluate(async (text) => {
    const { letterbox, pythonValue, readMetadata, select } = await import('./erpose.mjs');
    const bytes = (data) => Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes(text)]));
    const pen = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
    pen.drawImage(bitmap, 0, 0);
    const { input } = letterbox(pen.getImageData(0, 0, bitmap.width, bitmap.height), 160, 96);
    // dense rows: neither sorted nor few
    const dense = new Float32Array(8 * 1000).map((_, at) => (at % 8 === 4 ? ((at * 7919) % 1000) / 2000 : at % 8));
    const rows = select(dense, 8, 0.3, { left: 0, top: 0, scaleX: 1, scaleY: 1, width: 160, height: 96, columns: 2 });
    return {
      metadata: readMetadata(new Uint8Array(await (await fetch('erpose-n.onnx')).arrayBuffer())),
      letterbox: Array.from(input, (v) => Math.round(v * 255)),
      scores: rows.map((row) => row[4]),
      wanted: Array.from(dense.filter((v, at) => at % 8 === 4 && v > Math.fround(0.3))).sort((a, b) => b - a).slice(0, 300),
      values: ["{0: 'it\\'s', 1: \"b\"}", '[[0, 1], (2, 3,)]', 'None', '-1.5e-3', 'plain words', '[1, 2', '{}'].map(pythonValue),
    };
  }, image);

  // dropped instead of chosen, and another threshold without another run
  page = await open(browser, `?conf=${conf}`);
  const transfer = await page.evaluateHandle((text) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], 'dropped.png', { type: 'image/png' }));
    return data;
  }, image);
  await page.dispatchEvent('#stage', 'drop', { dataTransfer: transfer });
  await page.waitForFunction(() => window.erpose.frames > 0, null, SLOW);
  found.dropped = await page.evaluate(() => window.erpose.lastRows);
  await page.fill('#conf', '0.05');
  found.lenient = await page.evaluate(() => window.erpose.lastRows.length);
  await page.setInputFiles('#file', { name: 'notes.txt', mimeType: 'text/plain', buffer: Buffer.from('no image') });
  found.notImage = await complaint(page);
  await page.click('#camera');
  found.noCamera = await complaint(page, '[Cc]amera');
  await page.setViewportSize({ width: 360, height: 700 }); // a phone
  found.overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  const unnamed = 'button:not([hidden]), input, select, canvas';
  found.unnamed = await page.$$eval(unnamed, (all) => all.filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).length);

  page = await open(browser, `?threads=1&conf=${conf}`);
  found.single = await choose(page, file);

  found.quiet = [...found.console]; // below, the browser reports a missing file as an error of its own
  for (const name of ['absent.onnx', 'package.json', ...Object.keys(models)]) {
    page = await open(browser, `?model=${name}`);
    found.wrong[name] = await complaint(page);
  }
  found.afterWrong = await choose(page, file);
} finally {
  await browser.close();
}

browser = await launch(['--disable-gpu', '--use-fake-device-for-media-stream']);
try {
  const page = await open(browser);
  await page.click('#camera'); // no permission was given
  found.refused = await complaint(page);
  await page.context().grantPermissions(['camera']);
  await page.click('#camera');
  await page.waitForFunction(() => window.erpose.rate, null, SLOW);
  const text = (id) => page.evaluate((name) => document.querySelector(name).textContent, id);
  found.camera = { rate: await text('#rate'), time: await text('#time'), error: await page.evaluate(() => window.erpose.error) };
  await page.click('#camera');
  found.rateAfter = await page.isVisible('#rate');
  found.cameraOff = await page.textContent('#camera');
} finally {
  await browser.close();
}
// WebGPU as Chromium computes it on the CPU: not taken by itself, but asked for it gives the same
browser = await launch(['--enable-unsafe-webgpu', '--enable-features=Vulkan', '--use-vulkan=swiftshader', '--use-webgpu-adapter=swiftshader']);
try {
  const search = `?conf=${photos[0].conf}`;
  let page = await open(browser, search);
  found.adapter = await page.evaluate(async () => (await navigator.gpu?.requestAdapter())?.info.isFallbackAdapter ?? null);
  found.byItself = await page.evaluate(() => window.erpose);
  if (found.adapter !== null) {
    page = await open(browser, `${search}&backend=webgpu`);
    found.gpu = await page.evaluate(() => window.erpose);
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(found));
