"use strict";
// In the thread of the sound: hands on what the microphone hears and what B says in the same moment, and plays B's voice later by
// `hold` samples, so that the face that goes with it can be made. Both have the clock of the sound device.

class SoundWorklet extends AudioWorkletProcessor {
  constructor({ processorOptions: { hold, piece } }) {
    super();
    this.held = new Float32Array(hold), this.place = 0;
    this.words = null, this.said = 0;
    this.heard = new Float32Array(piece), this.own = new Float32Array(piece), this.filled = 0;
    this.port.onmessage = ({ data }) => { this.words = data, this.said = 0; };  // Samples at the device's rate; null: B is silent.
  }

  process([[microphone]], [[output]]) {
    const { held, heard, own, words } = this;
    for (let i = 0; i < output.length; i++) {
      const sample = words && this.said < words.length ? words[this.said++] : 0;
      heard[this.filled] = microphone ? microphone[i] : 0, own[this.filled++] = sample;
      output[i] = held[this.place], held[this.place] = sample;
      this.place = (this.place + 1) % held.length;
      if (this.filled < heard.length) continue;
      this.filled = 0;
      const speaks = words !== null && this.said < words.length + held.length;
      this.port.postMessage({ end: currentFrame + i + 1, heard: heard.slice(), own: own.slice(), speaks });
    }
    if (words && this.said >= words.length && (this.said += output.length) > words.length + held.length) this.words = null;
    return true;
  }
}

registerProcessor("sound", SoundWorklet);
