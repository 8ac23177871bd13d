"use strict";
// A voice as the generator hears it, frame by frame: level and log-mel features as speech/level.py and speech/logmel.py have them.
const SAMPLE_RATE = 16000, FRAME_SAMPLES = 640;

// --- Level.

const BLOCK = 160, PART = 40, TARGET = -23.5, MOST = 30, SMOOTHING = Math.exp(-10 / 50);
const BELOW_PEAK = 8, ABOVE_FLOOR = 5, FAINTEST = -70, FLOOR_RISE = 0.03, PEAK_FALL = 0.001, PEAK_FALL_SPEAKING = 0.03;
const MEMORY = 500, PRIOR = 5;

class Level {
  constructor() {
    this.gain = 0, this.mean = TARGET, this.speech = PRIOR;
    this.power = this.peak = this.floor = null;  // Before the first block.
  }

  /** The next whole blocks of a voice at the level of speech. */
  push(wav) {
    const out = new Float32Array(wav.length);
    for (let start = 0; start < wav.length; start += BLOCK) {
      const before = this.gain, after = this.gain = Math.min(Math.max(TARGET - this.mean, -MOST), MOST);
      this.hear(wav.subarray(start, start + BLOCK));
      for (let i = 0; i < BLOCK; i++) {
        out[start + i] = wav[start + i] * 10 ** ((before + (after - before) * (i + 1) / BLOCK) / 20);
      }
    }
    return out;
  }

  /** What is known of the level after a block. */
  hear(block) {
    let power = 0;  // The mean of the parts' variances.
    for (let start = 0; start < BLOCK; start += PART) {
      let mean = 0, variance = 0;
      for (let i = start; i < start + PART; i++) mean += block[i] / PART;
      for (let i = start; i < start + PART; i++) variance += (block[i] - mean) ** 2 / PART;
      power += variance * PART / BLOCK;
    }
    const first = this.power === null;
    this.power = first ? power : SMOOTHING * this.power + (1 - SMOOTHING) * power;
    const loudness = 10 * Math.log10(this.power + 1e-12);
    this.floor = first ? loudness : Math.min(loudness, this.floor + FLOOR_RISE);
    const above = loudness > Math.max(this.floor + ABOVE_FLOOR, FAINTEST);
    this.peak = first ? loudness : Math.max(loudness, this.peak - (above ? PEAK_FALL_SPEAKING : PEAK_FALL));
    if (!above || loudness <= this.peak - BELOW_PEAK) return;
    const lost = this.mean < this.peak - BELOW_PEAK && this.speech > PRIOR;
    this.speech = lost ? 1 : Math.min(this.speech + 1, MEMORY);
    this.mean += (loudness - this.mean) / this.speech;
  }
}

// --- Log-mel features.

const WINDOW = 400, FFT = 1024, ENERGY_FLOOR = 1e-8;

/** Fourier transform of FFT complex numbers in place: radix 2, decimation in time. */
class Fourier {
  constructor() {
    const bits = Math.log2(FFT);
    this.cosines = Float64Array.from({ length: FFT / 2 }, (_, i) => Math.cos(2 * Math.PI * i / FFT));
    this.sines = Float64Array.from({ length: FFT / 2 }, (_, i) => -Math.sin(2 * Math.PI * i / FFT));
    this.reversed = Uint16Array.from({ length: FFT }, (_, i) => {
      let out = 0;
      for (let b = 0; b < bits; b++) out |= (i >> b & 1) << (bits - 1 - b);
      return out;
    });
  }

  transform(real, imaginary) {
    const { cosines, sines, reversed } = this;
    for (let i = 0; i < FFT; i++) {
      const j = reversed[i];
      if (j <= i) continue;
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
    for (let half = 1; half < FFT; half *= 2) {
      const turn = FFT / (2 * half);
      for (let start = 0; start < FFT; start += 2 * half) {
        for (let k = 0; k < half; k++) {
          const a = start + k, b = a + half, c = cosines[k * turn], s = sines[k * turn];
          const x = c * real[b] - s * imaginary[b], y = c * imaginary[b] + s * real[b];
          real[b] = real[a] - x, imaginary[b] = imaginary[a] - y;
          real[a] += x, imaginary[a] += y;
        }
      }
    }
  }
}

/** Triangular filters, centres evenly spaced on the HTK mel scale up to half the rate: { first, weights } of each. */
function melFilters(count) {
  const top = 2595 * Math.log10(1 + SAMPLE_RATE / 2 / 700);
  const edges = Array.from({ length: count + 2 }, (_, i) => 700 * (10 ** (top * i / (count + 1) / 2595) - 1));
  return Array.from({ length: count }, (_, m) => {
    const [low, centre, high] = edges.slice(m, m + 3), weights = [];
    let first = 0;
    for (let bin = 0; bin <= FFT / 2; bin++) {
      const hertz = bin * SAMPLE_RATE / FFT;
      const weight = Math.max(0, Math.min((hertz - low) / (centre - low), (high - hertz) / (high - centre)));
      if (!weight) continue;
      if (!weights.length) first = bin;
      weights.push(weight);
    }
    return { first, weights: Float32Array.from(weights) };
  });
}

/** A voice's features, as `LogMel(causal=True)` makes them: the windows of a frame end with it. */
class LogMel {
  /** settings: mels, hop, context (windows of a frame). */
  constructor({ mels, hop, context }) {
    this.mels = mels, this.hop = hop, this.context = context;
    this.overhang = Math.max(0, WINDOW + (context - 1) * hop - FRAME_SAMPLES);
    this.samples = new Float32Array(this.overhang + FRAME_SAMPLES);  // Those before this frame, and its own.
    this.taper = Float64Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / WINDOW));
    this.filters = melFilters(mels);
    this.fourier = new Fourier();
    this.real = new Float64Array(FFT), this.imaginary = new Float64Array(FFT);
    this.power = [new Float64Array(FFT / 2 + 1), new Float64Array(FFT / 2 + 1)];
  }

  /** Features of the next frame of the voice, context × mels, in an array of their own. */
  push(frame) {
    const { samples, overhang, hop, context, mels } = this, out = new Float32Array(context * mels);
    samples.copyWithin(0, FRAME_SAMPLES);
    samples.set(frame, overhang);
    for (let i = 0; i < context; i += 2) {
      this.measure(i * hop, i + 1 < context ? (i + 1) * hop : null);
      this.filter(this.power[0], out.subarray(i * mels, (i + 1) * mels));
      if (i + 1 < context) this.filter(this.power[1], out.subarray((i + 1) * mels, (i + 2) * mels));
    }
    return out;
  }

  /** Power spectra of the windows that begin there: two real signals are one complex one. */
  measure(first, second) {
    const { samples, taper, real, imaginary, power: [one, other] } = this;
    real.fill(0), imaginary.fill(0);
    for (let i = 0; i < WINDOW; i++) {
      real[i] = samples[first + i] * taper[i];
      if (second !== null) imaginary[i] = samples[second + i] * taper[i];
    }
    this.fourier.transform(real, imaginary);
    const scale = 1 / (4 * (WINDOW / 2) ** 2);  // The taper's sum is half its length.
    for (let k = 0; k <= FFT / 2; k++) {
      const j = (FFT - k) % FFT;
      one[k] = scale * ((real[k] + real[j]) ** 2 + (imaginary[k] - imaginary[j]) ** 2);
      other[k] = scale * ((imaginary[k] + imaginary[j]) ** 2 + (real[j] - real[k]) ** 2);
    }
  }

  filter(power, out) {
    this.filters.forEach(({ first, weights }, m) => {
      let energy = ENERGY_FLOOR;
      for (let i = 0; i < weights.length; i++) energy += power[first + i] * weights[i];
      out[m] = (Math.log10(energy) + 5) / 1.5;
    });
  }
}

/** One voice in frames of FRAME_SAMPLES samples, [-1, 1]. settings: those of `LogMel`, and `level`: whether it is brought to one. */
class Hearing {
  constructor(settings) {
    this.level = settings.level ? new Level() : null;
    this.logMel = new LogMel(settings);
  }

  push(frame) {
    return this.logMel.push(this.level ? this.level.push(frame) : frame);
  }
}
