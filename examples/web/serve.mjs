// A static file server for this folder, for trying the page:
//   node serve.mjs [--model best.onnx] [--port 8080] [--host 127.0.0.1]
// --model serves a file from elsewhere as erpose-n.onnx, the one that the page opens. Without it, prepare.py makes that file
// and the sample photos where they are missing, with the Python named in the environment variable PYTHON, or "python".
// Any other web server does as well, if it knows the types of .mjs and .wasm. The two Cross-Origin headers let
// WebAssembly use threads; without them the page works on one.
import { spawnSync } from 'node:child_process';
import { createReadStream, existsSync } from 'node:fs';
import { realpath, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const ROOT = path.dirname(fileURLToPath(import.meta.url));
const TYPES = {
  '.css': 'text/css; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.json': 'application/json; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.onnx': 'application/octet-stream',
  '.png': 'image/png',
  '.jpg': 'image/jpeg',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
};

const { values } = parseArgs({
  options: {
    model: { type: 'string' },
    port: { type: 'string', default: '8080' },
    host: { type: 'string', default: '127.0.0.1' },
  },
});
if (values.model && !existsSync(values.model)) {
  console.error(`error: there is no file ${values.model}`);
  process.exit(1);
}

if (!values.model && !['erpose-n.onnx', 'bus.jpg', 'zidane.jpg'].every((name) => existsSync(path.join(ROOT, name)))) {
  console.error('Making erpose-n.onnx and the sample photos, once');
  const done = spawnSync(process.env.PYTHON ?? 'python', ['prepare.py'], { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'ignore', 'pipe'] });
  if (done.status !== 0) {
    const why = done.error?.message ?? done.stderr.trim().split('\n').at(-1);
    console.error(`error: erpose-n.onnx could not be made (${why}): pip install 'erpose-yolo[export]', or give --model FILE.onnx`);
    process.exit(1);
  }
}

async function answer(request, response) {
  const fail = (code, text) => response.writeHead(code, { 'Content-Type': 'text/plain; charset=utf-8' }).end(`${text}\n`);
  if (request.method !== 'GET' && request.method !== 'HEAD') return fail(405, 'only GET and HEAD');
  let file;
  try {
    const name = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    file = path.join(ROOT, path.normalize(name.endsWith('/') ? `${name}index.html` : name)); // normalize: no way above '/'
    if (name.includes('\0')) throw new Error('a file name holds no NUL');
    if (values.model && name === '/erpose-n.onnx') file = path.resolve(values.model);
  } catch {
    return fail(400, 'not an address');
  }
  let facts;
  try {
    facts = await stat(file);
  } catch {
    return fail(404, 'not found');
  }
  if (!facts.isFile()) return fail(404, 'not found');
  response.writeHead(200, {
    'Content-Type': TYPES[path.extname(file).toLowerCase()] ?? 'application/octet-stream',
    'Content-Length': facts.size,
    'Cache-Control': 'no-cache',
    'X-Content-Type-Options': 'nosniff',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
  });
  if (request.method === 'HEAD') return response.end();
  createReadStream(file).on('error', () => response.destroy()).pipe(response);
}

const server = createServer((request, response) => {
  answer(request, response).catch(() => response.destroy());
});
server.on('error', (error) => {
  console.error(error.code === 'EADDRINUSE' ? `port ${values.port} is taken: node serve.mjs --port 8081` : `error: ${error.message}`);
  process.exit(1);
});
server.listen(Number(values.port), values.host, async () => {
  console.log(`http://${values.host}:${server.address().port}/`);
  const there = await realpath(path.join(ROOT, 'node_modules/onnxruntime-web')).catch(() => null);
  if (!there) console.log('onnxruntime-web is not installed yet: npm ci');
});
