"use strict";
// A conversation without a server: samples of both voices at the rate of the sound device in, B's motion out.

/** Samples of another rate, in pieces of at most some thousands, at 16 kHz. Sample n lies at the time of n / 16000 s. */
class Resampler {
  constructor(rate) {
    const step = rate / SAMPLE_RATE;
    this.rate = rate, this.sinc = new Sinc(0.92 * Math.min(1, 1 / step), Math.ceil(16 * Math.max(1, step)));
    this.ring = new Float32Array(1 << 14), this.written = 0;  // Before the beginning there is silence.
    this.made = 0;
  }

  /** The samples that can be told now. */
  push(samples) {
    if (this.rate === SAMPLE_RATE) return samples;
    const { ring, sinc, rate } = this, out = [];
    for (const sample of samples) ring[this.written++ & (ring.length - 1)] = sample;
    for (let place; (place = this.made * rate / SAMPLE_RATE) + sinc.half + 1 <= this.written; this.made++) out.push(sinc.at(ring, place));
    return Float32Array.from(out);
  }
}

/** Who listens and who speaks. model: { settings, weights } of `MotionStream`; rate: of the samples. */
class Conversation {
  constructor(model, rate) {
    this.voices = [0, 1].map(() => ({ resampler: new Resampler(rate), hearing: new Hearing(model.settings.speech) }));
    this.waiting = [new Float32Array(0), new Float32Array(0)];  // Of a frame that is not over.
    this.stream = new MotionStream(model), this.mirror = new MotionStream(model);
    this.rest = model.weights.motion_mean;  // A face of which nothing is known.
    this.motion = new Float32Array(MOTION);  // B's last.
    this.relation = 0, this.guesses = false;
    this.frames = 0;
    for (let i = 0; i < model.settings.ahead; i++) this.stream.prime(this.voices[1].hearing.push(new Float32Array(FRAME_SAMPLES)));
  }

  /**
   * The next samples, as many of A's voice as of B's, which the generator may hear some frames before A does (`ahead`). Returns B's
   * motion for all frames of A's that are over with them.
   * A's face is not seen. It is the mean one, or what the generator itself makes of the conversation when A takes B's place: `guesses`.
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
      const face = this.guesses ? this.mirror.push(b, this.motion, a, this.relation) : this.rest;
      this.motion = this.stream.push(a, face, b, this.relation);
      this.frames++;
      made.push(this.motion);
    }
    return made;
  }
}
