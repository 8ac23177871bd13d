"use strict";
// Loaded into the scope of the worklets, before those that use it.

/** Values between samples, by a windowed sinc. */
globalThis.Sinc = class Sinc {
  /** cutoff: in units of the samples' Nyquist frequency; half: samples on each side that a value depends on. */
  constructor(cutoff, half) {
    this.half = half, this.phases = 128;
    this.table = new Float32Array((this.phases + 1) * 2 * half);
    for (let phase = 0; phase <= this.phases; phase++) {
      const weights = this.table.subarray(phase * 2 * half, (phase + 1) * 2 * half);
      let sum = 0;
      for (let k = 0; k < 2 * half; k++) {
        const x = k - half + 1 - phase / this.phases, y = Math.PI * cutoff * x;
        const window = Math.abs(x) < half ? 0.5 + 0.5 * Math.cos(Math.PI * x / half) : 0;
        sum += weights[k] = (y === 0 ? 1 : Math.sin(y) / y) * window;
      }
      for (let k = 0; k < 2 * half; k++) weights[k] /= sum;
    }
  }

  /** The value at a position; sample i lies at `ring[i % length]`, the length being a power of two. */
  at(ring, position) {
    const { half, table, phases } = this, mask = ring.length - 1, base = Math.floor(position);
    const place = (position - base) * phases, phase = Math.floor(place), share = place - phase, row = phase * 2 * half;
    let low = 0, high = 0;
    for (let k = 0; k < 2 * half; k++) {
      const sample = ring[(base - half + 1 + k) & mask];
      low += table[row + k] * sample;
      high += table[row + 2 * half + k] * sample;
    }
    return low + share * (high - low);
  }
};
