"use strict";
// A conversation without a server: samples of both voices at the rate of the sound device in, B's motion out.

/** Samples of another rate, in pieces, at 16 kHz: a sinc under a Hann window. Sample n lies at the time of n / 16000 s. */
class Resampler {
  constructor(rate) {
    const divisor = (a, b) => (b ? divisor(b, a % b) : a), common = divisor(rate, SAMPLE_RATE);
    this.phases = SAMPLE_RATE / common, this.steps = rate / common;  // An output every steps / phases inputs.
    const cutoff = 0.95 * Math.min(1, SAMPLE_RATE / rate);
    this.half = rate === SAMPLE_RATE ? 0 : Math.ceil(24 / cutoff);  // Inputs seen to each side.
    this.weights = this.half ? Array.from({ length: this.phases }, (_, phase) => this.kernel(phase / this.phases, cutoff)) : null;
    this.waiting = new Float32Array(this.half);  // What is still needed; before the beginning there is silence.
    this.phase = 0;
  }

  kernel(place, cutoff) {
    const { half } = this, out = new Float64Array(2 * half + 1);
    for (let i = 0; i < out.length; i++) {
      const x = i - half - place, turn = Math.PI * cutoff * x;
      if (Math.abs(x) < half) out[i] = (turn ? Math.sin(turn) / turn : 1) * (0.5 + 0.5 * Math.cos(Math.PI * x / half));
    }
    const sum = out.reduce((a, b) => a + b);
    return out.map((x) => x / sum);
  }

  /** The samples that can be told now. */
  push(samples) {
    if (!this.half) return samples;
    const all = new Float32Array(this.waiting.length + samples.length), out = [];
    all.set(this.waiting), all.set(samples, this.waiting.length);
    let start = 0;  // Of the inputs that the next output is made of.
    for (; start + 2 * this.half < all.length; this.phase %= this.phases) {
      const weights = this.weights[this.phase];
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * all[start + i];
      out.push(sum);
      this.phase += this.steps, start += Math.floor(this.phase / this.phases);
    }
    this.waiting = all.slice(start);
    return Float32Array.from(out);
  }
}

/** Who listens and who speaks. model: { settings, weights } of `MotionStream`; rate: of the samples. */
class Conversation {
  constructor(model, rate) {
    this.voices = [0, 1].map(() => ({ resampler: new Resampler(rate), hearing: new Hearing(model.settings.speech) }));
    this.waiting = [new Float32Array(0), new Float32Array(0)];  // Of a frame that is not over.
    this.stream = new MotionStream(model), this.mirror = new MotionStream(model);
    this.motion = new Float32Array(MOTION);  // B's last.
    this.relation = 0, this.guesses = false;
    this.frames = 0;
  }

  /**
   * The next samples, as many of A's voice as of B's. Returns B's motion for all frames that are over with them.
   * A's face is not seen. It is at rest, or what the generator itself makes of the conversation when A takes B's place: `guesses`.
   */
  push(heard, own) {
    const made = [];
    [heard, own].forEach((samples, i) => {
      const more = this.voices[i].resampler.push(samples), joined = new Float32Array(this.waiting[i].length + more.length);
      joined.set(this.waiting[i]), joined.set(more, this.waiting[i].length);
      this.waiting[i] = joined;
    });
    while (this.waiting[0].length >= FRAME_SAMPLES) {
      const [a, b] = this.voices.map(({ hearing }, i) => hearing.push(this.waiting[i].subarray(0, FRAME_SAMPLES)));
      this.waiting = this.waiting.map((x) => x.subarray(FRAME_SAMPLES));
      const face = this.guesses ? this.mirror.push(b, this.motion, a, this.relation) : new Float32Array(MOTION);
      this.motion = this.stream.push(a, face, b, this.relation);
      this.frames++;
      made.push(this.motion);
    }
    return made;
  }
}
