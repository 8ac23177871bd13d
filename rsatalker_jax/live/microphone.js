"use strict";
// A's microphone, at whatever rate the sound card has, as frames of 640 samples at 16 kHz. Needs resampler.js.

const FRAME = 640, RATE = 16000;

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE;
    this.sinc = new Sinc(0.92 * Math.min(1, 1 / this.step), Math.ceil(16 * Math.max(1, this.step)));
    this.ring = new Float32Array(1 << 14);
    this.written = 0, this.next = 0;  // Samples so far, and where in them the next of 16 kHz lies.
    this.sound = new Int16Array(FRAME), this.count = 0, this.power = 0;
  }

  process([[channel]]) {
    const mask = this.ring.length - 1, length = channel ? channel.length : 128;  // A microphone that is gone is silent.
    for (let i = 0; i < length; i++) this.ring[(this.written + i) & mask] = channel ? channel[i] : 0;
    this.written += length;
    while (this.next + this.sinc.half + 1 <= this.written) {
      const value = Math.min(Math.max(this.sinc.at(this.ring, this.next), -1), 1);
      this.next += this.step;
      this.power += value * value;
      this.sound[this.count++] = Math.round(32767 * value);
      if (this.count < FRAME) continue;
      const message = { sound: this.sound, level: Math.sqrt(this.power / FRAME), time: currentTime + length / sampleRate };
      this.port.postMessage(message, [this.sound.buffer]);
      this.sound = new Int16Array(FRAME), this.count = 0, this.power = 0;
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
