// ER-Pose in the browser: image -> letterbox -> network -> rows above a threshold -> skeletons.
// A row is `x1 y1 x2 y2 score class` and `x y v` (or `x y`) per keypoint, in pixels of the network input. One person has
// one row, so nothing is left to do after the threshold.
//
// Query string: ?model=FILE.onnx  ?photo=FILE.jpg  ?backend=wasm|webgpu  ?threads=N  ?conf=0.25

const RUNTIME = new URL('node_modules/onnxruntime-web/dist/', import.meta.url).href;
const SAMPLES = ['bus.jpg', 'zidane.jpg']; // beside this page, the first is shown at once
const MAX_PERSONS = 300;
const MAX_PIXELS = 16e6; // browsers of phones hold no larger canvas
const PAD = 114; // grey around the letterboxed image, as in training
const COCO_LIMBS = [
  [15, 13], [13, 11], [16, 14], [14, 12], [11, 12], [5, 11], [6, 12], [5, 6], [5, 7], [6, 8], [7, 9], [8, 10],
  [1, 2], [0, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 6],
];
const COLOURS = ['#ff6b3d', '#25c2ff', '#ffd02e', '#3ddc84', '#ff6fd8', '#9d8cff', '#00e0c6', '#ff4f64'];

const query = new URLSearchParams(location.search);
const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------- the model file

/** Value of a Python literal (what Ultralytics writes into metadata), or the text itself where it is none. */
export function pythonValue(text) {
  let at = 0;
  const skip = () => { while (/\s/.test(text[at] ?? '')) at++; };
  const list = (end) => {
    const out = [];
    at++;
    for (skip(); text[at] !== end; skip()) {
      let item = value();
      skip();
      if (end === '}') {
        if (text[at++] !== ':') throw new SyntaxError(text);
        item = [item, value()];
        skip();
      }
      out.push(item);
      if (text[at] === ',') at++;
      else if (text[at] !== end) throw new SyntaxError(text);
    }
    at++;
    return out;
  };
  const value = () => {
    skip();
    const c = text[at];
    if (c === '[') return list(']');
    if (c === '(') return list(')');
    if (c === '{') return Object.fromEntries(list('}'));
    if (c === "'" || c === '"') {
      let out = '';
      for (at++; text[at] !== c; at++) {
        if (at >= text.length) throw new SyntaxError(text);
        if (text[at] === '\\') at++;
        out += text[at];
      }
      at++;
      return out;
    }
    const word = /^(?:True|False|None|true|false|null|[-+]?[\d.]+(?:[eE][-+]?\d+)?)/.exec(text.slice(at))?.[0];
    if (!word) throw new SyntaxError(text);
    at += word.length;
    const known = { true: true, false: false, none: null, null: null };
    return word.toLowerCase() in known ? known[word.toLowerCase()] : Number(word);
  };
  try {
    const out = value();
    skip();
    return at === text.length ? out : text;
  } catch {
    return text;
  }
}

/** Metadata of an ONNX file (ModelProto, field 14), which onnxruntime-web does not hand out. */
export function readMetadata(bytes) {
  const decode = (part) => new TextDecoder('utf-8', { fatal: true }).decode(part);
  function* fields(data) {
    let at = 0;
    const varint = () => {
      let out = 0;
      for (let scale = 1; ; scale *= 128) {
        if (at >= data.length) throw new RangeError('cut off');
        const byte = data[at++];
        out += (byte & 127) * scale;
        if (byte < 128) return out;
      }
    };
    while (at < data.length) {
      const tag = varint();
      const kind = tag % 8;
      if (kind === 0) varint();
      else if (kind === 1) at += 8;
      else if (kind === 5) at += 4;
      else if (kind === 2) {
        const size = varint();
        if (at + size > data.length) throw new RangeError('cut off');
        yield [Math.floor(tag / 8), data.subarray(at, at + size)];
        at += size;
      } else throw new RangeError('not protobuf');
    }
  }
  const out = {};
  for (const [field, data] of fields(bytes)) {
    if (field !== 14) continue;
    const pair = Object.fromEntries(fields(data));
    if (pair[1]) out[decode(pair[1])] = pythonValue(decode(pair[2] ?? new Uint8Array()));
  }
  return out;
}

class Trouble extends Error {} // its message is for the person before the screen

async function download(url, progress) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Trouble(`The model ${url} could not be fetched. Is the server still running? Models of other hosts are not loaded.`);
  }
  if (!response.ok) {
    throw new Trouble(
      `There is no model file ${url} on this server (${response.status}).\n` +
      'Make one: yolo export model=best.pt format=onnx\n' +
      'Start the server with it: node serve.mjs --model best.onnx\n' +
      'Or copy it beside this page and name it in the address: ?model=best.onnx',
    );
  }
  const total = Number(response.headers.get('Content-Length'));
  const reader = response.body.getReader();
  const parts = [];
  let size = 0;
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    parts.push(step.value);
    size += step.value.length;
    progress(total ? `loading, ${Math.round((100 * size) / total)} %` : 'loading');
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function loadRuntime(backend) {
  const name = backend === 'webgpu' ? 'ort.webgpu.min.mjs' : 'ort.wasm.min.mjs';
  let ort;
  try {
    ort = await import(RUNTIME + name);
  } catch {
    throw new Trouble('onnxruntime-web is not installed beside this page. Run "npm ci" in examples/web and reload.');
  }
  ort.env.wasm.wasmPaths = RUNTIME;
  const wanted = Number(query.get('threads')) || Math.min(4, navigator.hardwareConcurrency || 1);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? wanted : 1; // threads need shared memory, that needs isolation
  return ort;
}

async function loadModel(url, backend, progress) {
  const bytes = await download(url, progress);
  const ort = await loadRuntime(backend);
  let facts;
  let session;
  try {
    facts = readMetadata(bytes);
    progress('starting');
    const executionProviders = backend === 'webgpu' ? ['webgpu', 'wasm'] : ['wasm']; // TopK and shapes stay on the CPU
    session = await ort.InferenceSession.create(bytes, { executionProviders, logSeverityLevel: 3 });
  } catch (error) {
    throw new Trouble(`${url} is not an ONNX model that runs here: ${String(error.message ?? error).slice(0, 300)}`);
  }
  const input = session.inputMetadata[0];
  const [keypoints, columns] = facts.kpt_shape ?? [];
  const wrong = (why) => new Trouble(`${url} is not a model for this page: ${why}`);
  if (facts.task !== 'pose' || !keypoints || (facts.head ?? 'ERPoseHead') !== 'ERPoseHead') {
    throw wrong(`its metadata say task ${facts.task ?? 'unknown'}, head ${facts.head ?? 'unknown'}; it takes an ER-Pose export.`);
  }
  if (input.type !== 'float32') throw wrong(`it takes ${input.type}; export it without half or quantize.`);
  if (typeof input.shape[0] === 'number' && input.shape[0] !== 1) throw wrong(`it takes ${input.shape[0]} images at once; export it with batch=1.`);
  const fixed = typeof input.shape[2] === 'number' && typeof input.shape[3] === 'number';
  const [height, width] = fixed ? input.shape.slice(2) : facts.imgsz;
  return {
    ort, session, backend, keypoints, columns, height, width,
    threads: ort.env.wasm.numThreads,
    limbs: Array.isArray(facts.skeleton) && facts.skeleton.length ? facts.skeleton : keypoints === 17 ? COCO_LIMBS : [],
    classes: facts.names ?? {},
    version: ort.env.versions.web,
  };
}

// ---------------------------------------------------------------------------------------------- image to rows

/** Round half to even, as Python's round, so that the letterbox is the one of training to the pixel. */
function round(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

/** Sampling of one axis as cv2.INTER_LINEAR does it: pixel centres at one half, no smoothing, weights of 11 bits. */
function axis(from, to) {
  const first = new Int32Array(to);
  const second = new Int32Array(to);
  const weight = new Int32Array(to); // of the second; the first has what is left of 2048
  for (let i = 0; i < to; i++) {
    const x = Math.min(Math.max(Math.fround((i + 0.5) * (from / to) - 0.5), 0), from - 1);
    first[i] = Math.floor(x);
    second[i] = Math.min(first[i] + 1, from - 1);
    weight[i] = round((x - first[i]) * 2048);
  }
  return [first, second, weight];
}

/** Fit RGBA pixels into the network input: planes R, G, B in [0, 1], and the scales and padding that lead back. */
export function letterbox({ data, width: w, height: h }, width, height, into) {
  const ratio = Math.min(height / h, width / w);
  const newW = Math.max(round(w * ratio), 1);
  const newH = Math.max(round(h * ratio), 1);
  const left = round((width - newW) / 2 - 0.1);
  const top = round((height - newH) / 2 - 0.1);
  const plane = width * height;
  const out = into ?? new Float32Array(3 * plane);
  out.fill(PAD / 255);
  const [x0, x1, wx] = axis(w, newW);
  const [y0, y1, wy] = axis(h, newH);
  for (let y = 0; y < newH; y++) {
    const upper = y0[y] * w;
    const lower = y1[y] * w;
    const below = wy[y];
    let at = (top + y) * width + left;
    for (let x = 0; x < newW; x++, at++) {
      const a = 4 * (upper + x0[x]);
      const b = 4 * (upper + x1[x]);
      const c = 4 * (lower + x0[x]);
      const d = 4 * (lower + x1[x]);
      const right = wx[x];
      for (let k = 0; k < 3; k++) {
        const high = (data[a + k] * (2048 - right) + data[b + k] * right) >> 4;
        const low = (data[c + k] * (2048 - right) + data[d + k] * right) >> 4;
        out[at + k * plane] = ((((high * (2048 - below)) >> 16) + ((low * below) >> 16) + 2) >> 2) / 255;
      }
    }
  }
  return { input: out, scaleX: newW / w, scaleY: newH / h, left, top };
}

/** Rows above the threshold, best first, in pixels of the image. The network's rows may come in any order. */
export function select(output, size, conf, frame) {
  const kept = [];
  for (let at = 0; at < output.length; at += size) {
    if (output[at + 4] > conf) kept.push(Array.from(output.subarray(at, at + size)));
  }
  kept.sort((a, b) => b[4] - a[4]);
  kept.length = Math.min(kept.length, MAX_PERSONS);
  const x = (value) => Math.min(Math.max((value - frame.left) / frame.scaleX, 0), frame.width);
  const y = (value) => Math.min(Math.max((value - frame.top) / frame.scaleY, 0), frame.height);
  for (const row of kept) {
    [row[0], row[1], row[2], row[3]] = [x(row[0]), y(row[1]), x(row[2]), y(row[3])];
    for (let k = 6; k < size; k += frame.columns) [row[k], row[k + 1]] = [x(row[k]), y(row[k + 1])];
  }
  return kept;
}

async function detect(model, pixels) {
  const start = performance.now();
  const { height, width, keypoints, columns } = model;
  const frame = letterbox(pixels, width, height, model.buffer);
  model.buffer = frame.input; // one buffer for all frames
  const begin = performance.now();
  const tensor = new model.ort.Tensor('float32', frame.input, [1, 3, height, width]);
  const result = await model.session.run({ [model.session.inputNames[0]]: tensor });
  const end = performance.now();
  const rows = result[model.session.outputNames[0]];
  const size = 6 + keypoints * columns;
  if (rows.dims.length !== 3 || rows.dims[2] !== size) {
    throw new Trouble(`This model gives ${rows.dims.join(' x ')} numbers, and ${keypoints} keypoints take rows of ${size}. Was it exported with nms=True?`);
  }
  Object.assign(frame, { width: pixels.width, height: pixels.height, columns, output: rows.data, size, network: end - begin });
  frame.prepare = begin - start;
  return frame;
}

// ---------------------------------------------------------------------------------------------- drawing

function draw(model, image, rows, canvas) {
  const { width: w, height: h } = rows.frame;
  const room = canvas.parentElement.clientWidth * (window.devicePixelRatio || 1);
  const zoom = Math.min(Math.max(room / w, 0.25), 4, 2560 / Math.max(w, h)); // sharp lines on a small image, too
  canvas.width = Math.round(w * zoom);
  canvas.height = Math.round(h * zoom);
  const pen = canvas.getContext('2d');
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const unit = Math.max(canvas.width, canvas.height) / 320;
  pen.lineCap = 'round';
  const letter = Math.round(Math.max(11 * (canvas.width / canvas.parentElement.clientWidth), 6 + 3 * unit)); // readable on a phone
  pen.font = `600 ${letter}px system-ui, sans-serif`;
  pen.textBaseline = 'bottom';
  const { columns } = model;
  const tags = [];
  rows.forEach((row, index) => {
    const colour = COLOURS[index % COLOURS.length];
    const seen = (k) => columns === 2 || row[6 + k * columns + 2] >= 0.5;
    const point = (k) => [row[6 + k * columns] * zoom, row[7 + k * columns] * zoom];
    for (const [style, width] of [['#000a', 2.2 * unit], [colour, 1.4 * unit]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.beginPath();
      for (const [a, b] of model.limbs) {
        if (!seen(a) || !seen(b)) continue;
        pen.moveTo(...point(a));
        pen.lineTo(...point(b));
      }
      pen.stroke();
    }
    for (let k = 0; k < model.keypoints; k++) {
      if (!seen(k)) continue;
      pen.beginPath();
      pen.arc(...point(k), 1.6 * unit, 0, 7);
      pen.fillStyle = '#fff';
      pen.fill();
      pen.lineWidth = 0.9 * unit;
      pen.strokeStyle = colour;
      pen.stroke();
    }
    tags.push([((row[0] + row[2]) / 2) * zoom, row[1] * zoom, row[4].toFixed(2), colour]);
  });
  for (const [x, y, text, colour] of tags.reverse()) { // the best on top
    const wide = pen.measureText(text).width + 8;
    const tall = letter + 5;
    const left = Math.min(Math.max(x - wide / 2, 0), canvas.width - wide);
    const base = Math.max(y - unit, tall);
    pen.fillStyle = colour;
    pen.beginPath();
    if (pen.roundRect) pen.roundRect(left, base - tall, wide, tall, 4);
    else pen.rect(left, base - tall, wide, tall);
    pen.fill();
    pen.fillStyle = '#10151a';
    pen.fillText(text, left + 4, base - 2);
  }
}

// ---------------------------------------------------------------------------------------------- the page

// job: counts what the person asked for, so that a late answer to an earlier wish is not shown; turn: one run at a time.
const state = { model: null, last: null, photo: null, conf: 0.25, stream: null, facing: 'environment', job: 0, loading: null, turn: Promise.resolve() };
const scratch = document.createElement('canvas');
const video = Object.assign(document.createElement('video'), { muted: true, playsInline: true });
// For tests and for the console.
const facts = (window.erpose = { lastRows: null, lastTimes: null, frames: 0, rate: null, ready: false, error: null });

function complain(error) {
  const text = error === null ? null : error instanceof Trouble ? error.message : `Something went wrong: ${error?.message ?? error}`;
  if (error && !(error instanceof Trouble)) console.error(error);
  facts.error = text;
  $('error').textContent = text ?? '';
  $('error').hidden = text === null;
}

/** Pixels of an image bitmap or a video frame; very large ones are made smaller first. */
function readPixels(source, w, h) {
  const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / (w * h)));
  const width = Math.max(1, Math.floor(w * shrink));
  const height = Math.max(1, Math.floor(h * shrink));
  if (scratch.width !== width || scratch.height !== height) Object.assign(scratch, { width, height });
  const pen = scratch.getContext('2d', { willReadFrequently: true });
  pen.fillStyle = '#fff'; // under transparent images
  pen.fillRect(0, 0, width, height);
  pen.drawImage(source, 0, 0, width, height);
  return pen.getImageData(0, 0, width, height);
}

function show(announce) {
  const { model, last } = state;
  const begin = performance.now();
  const rows = select(last.output, last.size, state.conf, last);
  rows.frame = last;
  $('canvas').hidden = false;
  $('hint').hidden = true;
  $('stage').classList.add('full');
  draw(model, scratch, rows, $('canvas'));
  const times = { prepare: last.prepare, network: last.network, draw: performance.now() - begin };
  times.frame = times.prepare + times.network + times.draw;
  $('persons').textContent = rows.length;
  $('time').textContent = `${times.frame.toFixed(0)} ms`;
  $('network').textContent = `${times.network.toFixed(0)} ms`;
  if (announce) {
    const name = (row) => model.classes[row[5]] ?? 'person';
    const items = rows.map((row, index) => {
      const item = document.createElement('li');
      item.style.setProperty('--person', COLOURS[index % COLOURS.length]);
      const visible = model.columns === 2 ? model.keypoints : row.filter((v, at) => at >= 6 && (at - 6) % 3 === 2 && v >= 0.5).length;
      item.textContent = `${name(row)} ${index + 1}: ${row[4].toFixed(2)}, ${visible} keypoints`;
      return item;
    });
    $('list').replaceChildren(...items);
    $('canvas').setAttribute('aria-label', `Image with ${rows.length} ${rows.length === 1 ? 'person' : 'persons'} found`);
  }
  facts.lastRows = rows.map((row) => row.slice());
  facts.lastTimes = times;
  facts.frames++;
}

function run(source, width, height, job, announce) {
  const step = async () => {
    if (!state.model) throw new Trouble('There is no model to run.');
    if (job !== state.job) return;
    const begin = performance.now();
    const pixels = readPixels(source, width, height);
    const read = performance.now() - begin;
    const frame = await detect(state.model, pixels);
    if (job !== state.job) return;
    frame.prepare += read;
    state.last = frame;
    show(announce);
  };
  const mine = state.turn.then(step);
  state.turn = mine.catch(() => {});
  return mine;
}

async function openPhoto(file) {
  if (!file) return;
  stopCamera();
  state.photo = file;
  for (const button of $('samples').children) button.setAttribute('aria-pressed', String(button.title === file.name));
  const { job } = state;
  try {
    await state.loading;
    if (state.model) complain(null); // else it says why there is none
    else return;
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      throw new Trouble(`${file.name} is not an image that this browser can read.`);
    }
    await run(bitmap, bitmap.width, bitmap.height, job, true);
    bitmap.close();
  } catch (error) {
    complain(error);
  }
}

/** Open a photo that lies beside the page. */
async function openSample(name) {
  const { job } = state;
  const response = await fetch(name).catch(() => null);
  if (response?.ok && job === state.job) await openPhoto(new File([await response.blob()], name));
}

/** A button with a small image for each sample that is there. */
function offerSamples() {
  for (const name of SAMPLES) {
    const thumbnail = Object.assign(new Image(), { src: name, alt: '' });
    const button = Object.assign(document.createElement('button'), { type: 'button', title: name, ariaLabel: `Sample photo ${name}` });
    button.append(thumbnail);
    button.addEventListener('click', () => openSample(name));
    thumbnail.addEventListener('error', () => button.remove());
    $('samples').append(button);
  }
}

/** Frames per second of the last two seconds, shown over the image. */
function countFrames(times) {
  const now = performance.now();
  times.push(now);
  while (now - times[0] > 2000 && times.length > 2) times.shift();
  if (times.length < 2) return;
  facts.rate = (1000 * (times.length - 1)) / (now - times[0]);
  $('rate').textContent = `${facts.rate.toFixed(facts.rate < 10 ? 1 : 0)} fps`;
  $('rate').hidden = false;
}

function stopCamera() {
  state.job++;
  state.stream?.getTracks().forEach((track) => track.stop());
  state.stream = null;
  video.srcObject = null;
  $('camera').textContent = 'Start camera';
  $('camera').setAttribute('aria-pressed', 'false');
  $('turn').hidden = true;
  $('rate').hidden = true;
}

const REFUSED = {
  NotAllowedError: 'The camera was refused. Allow it for this page in the browser, then press "Start camera" again.',
  NotFoundError: 'This device has no camera.',
  NotReadableError: 'The camera is in use by another program.',
  OverconstrainedError: 'This device has no such camera.',
};

async function startCamera() {
  const job = ++state.job;
  try {
    await state.loading;
    if (!state.model) return; // the page says why
    complain(null);
    if (!navigator.mediaDevices) throw new Trouble('Browsers give the camera to pages on localhost or https only.');
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: state.facing } });
    } catch (error) {
      throw new Trouble(REFUSED[error.name] ?? `The camera does not start: ${error.message}`);
    }
    if (job !== state.job) { // something else was asked for meanwhile
      stream.getTracks().forEach((track) => track.stop());
      return;
    }
    state.stream = stream;
    video.srcObject = stream;
    await video.play();
    $('camera').textContent = 'Stop camera';
    $('camera').setAttribute('aria-pressed', 'true');
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === 'videoinput');
    $('turn').hidden = cameras.length < 2;
    $('list').replaceChildren();
    for (const button of $('samples').children) button.setAttribute('aria-pressed', 'false');
    const times = [];
    $('canvas').setAttribute('aria-label', 'Camera image with skeletons');
    while (state.stream === stream) {
      if (video.videoWidth && !document.hidden) {
        await run(video, video.videoWidth, video.videoHeight, job, false);
        if (state.stream === stream) countFrames(times);
      }
      await new Promise((next) => (document.hidden ? setTimeout(next, 300) : requestAnimationFrame(next)));
    }
  } catch (error) {
    if (job !== state.job) return;
    stopCamera();
    complain(error);
  }
}

/** Load the model for a backend; where the GPU cannot run it, and nobody asked for the GPU, for the CPU. */
async function load(backend, asked) {
  await state.turn;
  await state.model?.session.release();
  state.model = null;
  complain(null);
  const url = query.get('model') ?? 'erpose-n.onnx';
  const progress = (text) => { $('model').textContent = `${url}: ${text}`; };
  try {
    const model = await loadModel(url, backend, progress);
    await detect(model, new ImageData(8, 8)); // the first run is slow, and tells whether the rows are what is read here
    const where = backend === 'webgpu' ? 'GPU' : `CPU, ${model.threads} ${model.threads === 1 ? 'thread' : 'threads'}`;
    progress(`${model.keypoints} keypoints, ${model.width} x ${model.height} px, ${where}`);
    state.model = model;
    Object.assign(facts, { backend, threads: model.threads, version: model.version });
  } catch (error) {
    if (backend === 'webgpu' && !asked) {
      console.warn(error);
      $('backend').value = 'wasm';
      await load('wasm', asked);
      return;
    }
    $('model').textContent = 'none';
    complain(error);
  }
}

$('file').addEventListener('change', (event) => {
  openPhoto(event.target.files[0]);
  event.target.value = ''; // the same file may be chosen again
});
$('camera').addEventListener('click', () => (state.stream ? stopCamera() : startCamera()));
$('turn').addEventListener('click', () => {
  state.facing = state.facing === 'user' ? 'environment' : 'user';
  stopCamera();
  startCamera();
});
$('conf').addEventListener('input', () => {
  state.conf = Number($('conf').value);
  $('confValue').textContent = state.conf.toFixed(2);
  if (state.last && !state.stream) show(true); // the network need not run again
});
$('backend').addEventListener('change', () => {
  stopCamera();
  state.loading = load($('backend').value, true);
  openPhoto(state.photo);
});
for (const type of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    $('stage').classList.toggle('over', type === 'dragenter' || type === 'dragover');
    if (type === 'drop') openPhoto(event.dataTransfer.files[0]);
  });
}

if (Number(query.get('conf')) > 0) state.conf = Number(query.get('conf'));
$('conf').value = state.conf;
$('confValue').textContent = state.conf.toFixed(2);
offerSamples();
state.loading = (async () => {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  $('backendField').hidden = !adapter;
  const wanted = query.get('backend');
  const quick = adapter && !adapter.info?.isFallbackAdapter; // a fallback computes on the CPU, and slower than WebAssembly
  $('backend').value = adapter && (wanted === 'webgpu' || (quick && wanted !== 'wasm')) ? 'webgpu' : 'wasm';
  await load($('backend').value, wanted === 'webgpu');
})();
await state.loading;
if (state.model && state.job === 0) await openSample(query.get('photo') ?? SAMPLES[0]); // unless somebody was faster
facts.ready = state.model !== null;
