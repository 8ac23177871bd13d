"use strict";
// Of live_page.py: node live_page.js FOLDER. Reads the page and the conversation there, writes B's motion, prints CPU times.
const fs = require("fs"), path = require("path"), zlib = require("zlib");
const { scripts, relation, frames } = JSON.parse(fs.readFileSync(path.join(process.argv[2], "about.json"), "utf8"));
const file = (name) => path.join(process.argv[2], name);

function main() {
  const page = fs.readFileSync(file("page.html"), "utf8");
  const inside = (name) => page.match(new RegExp(`<script id="${name}"[^>]*>([^<]*)</script>`))[1];
  const bytes = zlib.gunzipSync(Buffer.from(inside("data"), "base64")), header = JSON.parse(inside("header"));
  const tables = readTables(header.tables, bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)), weights = {};
  for (const name of header.weights) weights[name] = readFrame(tables[name], 0);
  const model = { settings: header.settings, weights };

  const floats = (name) => new Float32Array(Uint8Array.from(fs.readFileSync(file(name))).buffer);
  const [voiceA, voiceB, motionA] = ["voice_a", "voice_b", "motion_a"].map(floats), out = new Float32Array(56 * frames);
  const stream = new MotionStream(model), hearing = [0, 1].map(() => new Hearing(header.settings.speech)), { ahead } = header.settings;
  const hear = (i, t) => hearing[i].push([voiceA, voiceB][i].subarray(640 * t, 640 * (t + 1)));
  for (let t = 0; t < ahead; t++) stream.prime(hear(1, t));
  for (let t = 0; t < frames; t++) {
    const a = hear(0, t), b = hear(1, t + ahead);
    out.set(stream.push(a, motionA.subarray(56 * t, 56 * (t + 1)), b, relation), 56 * t);
  }
  fs.writeFileSync(file("motion_b"), Buffer.from(out.buffer));

  // CPU time, as other programs may fill the machine: the median of seven, and the least.
  const measure = (count, work) => Array.from({ length: 7 }, () => {
    const before = process.cpuUsage();
    for (let i = 0; i < count; i++) work();
    const { user, system } = process.cpuUsage(before);
    return (user + system) / 1000 / count;
  }).sort((a, b) => a - b).filter((_, i) => i === 3 || i === 0).reverse();
  const avatar = new Avatar(tables), head = new Head(tables);
  const camera = makeCamera(header.view, { yaw: 0, pitch: 0, distance: header.view.distance }, 512, 512);
  const piece = voiceA.subarray(0, 1920), [heard, guessing] = [0, 1].map(() => new Conversation(model, 48000));
  guessing.guesses = true;
  const motion = out.subarray(56 * (frames - 1)), vertices = head.pose(motion), offsets = makeOffsets(tables);
  const corrections = offsets?.at(frames - 1, relation, motion);
  if (offsets) fs.writeFileSync(file("offsets"), Buffer.from(corrections.buffer));
  avatar.pose(vertices, corrections);
  console.log(JSON.stringify({
    "both voices and the generator": measure(100, () => heard.push(piece, piece)),
    "the same, A's face guessed": measure(100, () => guessing.push(piece, piece)),
    "picture: head": measure(50, () => head.pose(motion)),
    ...(offsets && { "picture: corrections": measure(50, () => offsets.at(frames - 1, relation, motion)) }),
    "picture: triangles": measure(50, () => avatar.pose(vertices, corrections)),
    "picture: projecting and sorting": measure(30, () => makeSplats(avatar, camera)),
  }));
}

// Classic scripts, in one scope with `main`.
const source = scripts.map((name) => fs.readFileSync(name, "utf8")).join("\n");
new Function("fs", "zlib", "file", "relation", "frames", `${source}\n(${main})();`)(fs, zlib, file, relation, frames);
