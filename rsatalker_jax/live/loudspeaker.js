"use strict";
// B's sound as it comes, frame by frame, at the sound card's rate; and where in it the loudspeaker is. Needs resampler.js.
//
// Sound is played at its own speed. Silence is not: it is stretched or shortened, so that as much lies in store as there should
// be (none while B is silent, `held` frames when it speaks), and a delay that the network made once does not stay.

const FRAME = 640, RATE = 16000, HOLD = 1, VOICED = 2, CUT = 4;
const FADE = 80;  // Samples, 5 ms.

class Loudspeaker extends AudioWorkletProcessor {
  constructor({ processorOptions: { held } }) {
    super();
    this.held = held;
    this.sinc = new Sinc(0.92, 16);
    this.ring = new Float32Array(1 << 17), this.flags = new Uint8Array(256);  // 8 s.
    this.blocks = 0;
    this.restart();
    this.port.onmessage = ({ data }) => (data ? this.take(data) : this.restart());
  }

  restart() {
    this.position = null, this.end = 0, this.speed = 1;  // In samples of 16 kHz since frame 0.
    this.starved = false, this.underruns = 0;
    this.ring.fill(0), this.flags.fill(0);
  }

  take({ number, flags, sound }) {
    const mask = this.ring.length - 1, start = number * FRAME;
    this.position ??= start;
    if (flags & CUT) this.cut(start);
    for (let i = 0; i < FRAME; i++) this.ring[(start + i) & mask] = sound[i] / 32768;
    this.flags[number & 255] = flags;
    this.end = start + FRAME;
    // As it was a moment after a frame has come: that frame itself and what is held back.
    const excess = (this.end - this.position) / FRAME - 1 - (flags & HOLD ? this.held : 0);
    this.speed = Math.min(Math.max(1 + excess / 2, 0.5), 2);
    // After a long pause of the page nobody wants to hear or see what was missed.
    if (excess > 25) this.position = this.end - FRAME;
  }

  /** Forgets what lies before `start` and was not played yet. */
  cut(start) {
    const mask = this.ring.length - 1, from = Math.floor(this.position);
    for (let i = from; i < start; i++) this.ring[i & mask] *= Math.max(0, 1 - (i - from) / FADE);
    for (let frame = Math.ceil(from / FRAME); frame * FRAME < start; frame++) this.flags[frame & 255] = 0;
  }

  process(_, [[channel]]) {
    for (let i = 0; i < channel.length; i++) {
      const ready = this.position !== null && this.position + this.sinc.half + 1 <= this.end;
      if (!ready) {
        // A frame is late. That is nothing to hear in the middle of silence.
        const frame = Math.floor((this.position ?? 0) / FRAME);
        if (!this.starved && this.flags[frame & 255] & VOICED) this.underruns++;
        this.starved = true;
        channel[i] = 0;
        continue;
      }
      this.starved = false;
      channel[i] = this.sinc.at(this.ring, this.position);
      const voiced = this.flags[Math.floor(this.position / FRAME) & 255] & VOICED;
      this.position += (voiced ? 1 : this.speed) * RATE / sampleRate;
    }
    if (this.blocks++ % 4 === 0) {
      const { position, underruns, starved } = this, stored = position === null ? 0 : (this.end - position) / FRAME;
      this.port.postMessage({ position, time: currentTime + channel.length / sampleRate, underruns, starved, stored });
    }
    return true;
  }
}

registerProcessor("loudspeaker", Loudspeaker);
