"use strict";
// Tables of numbers as tables.py packs them.

/** The content of a gzip stream, an ArrayBuffer. */
async function unzip(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Tables by name, from their descriptions and what `unzip` gave. */
function readTables(descriptions, buffer) {
  const tables = {};
  let start = 0;
  for (const { name, type, shape, least, step } of descriptions) {
    const count = shape.reduce((a, b) => a * b, 1);
    if (type === "uint32") {
      tables[name] = { shape, values: new Uint32Array(buffer, start, count) };
      start += 4 * count;
      continue;
    }
    // Steps as differences between frames, all low bytes and then all high bytes; sums wrap around at 16 bits.
    const bytes = new Uint8Array(buffer, start, 2 * count), values = new Uint16Array(count), frame = count / shape[0];
    for (let i = 0; i < count; i++) {
      values[i] = (i < frame ? 0 : values[i - frame]) + bytes[i] + (bytes[count + i] << 8);
    }
    tables[name] = { shape, values, least, step };
    start += 2 * count;
  }
  return tables;
}

/** One frame of a table as floats. */
function readFrame({ shape, values, least, step }, frame) {
  const columns = shape[2], count = shape[1] * columns, start = frame * count, out = new Float32Array(count);
  for (let i = 0; i < count; i++) out[i] = least[i % columns] + step[i % columns] * values[start + i];
  return out;
}
