"use strict";
// What the generator and the offset corrections are made of: layers that see one frame. A layer has an array for its output, which its
// next call overwrites. Sums are of 64 bits, what is kept of 32.

const MOTION = 56;
const TIME_PERIODS = [12.5, 25, 50, 100, 200, 400, 800];  // Frames.

class Dense {
  /** weights: arrays by name; outputs × inputs. */
  constructor(weights, name, outputs) {
    this.kernel = weights[`${name}/kernel`], this.bias = weights[`${name}/bias`];
    this.inputs = this.kernel.length / outputs;
    this.out = new Float32Array(outputs);
  }

  apply(x) {
    const { kernel, bias, inputs, out } = this, quads = inputs - inputs % 4;
    for (let o = 0, k = 0; o < out.length; o++) {
      let a = bias ? bias[o] : 0, b = 0, c = 0, d = 0, i = 0;  // Four sums that need not wait for each other.
      for (; i < quads; i += 4, k += 4) {
        a += kernel[k] * x[i], b += kernel[k + 1] * x[i + 1], c += kernel[k + 2] * x[i + 2], d += kernel[k + 3] * x[i + 3];
      }
      for (; i < inputs; i++, k++) a += kernel[k] * x[i];
      out[o] = a + b + (c + d);
    }
    return out;
  }
}

/** GELU in its tanh form, in place. */
function gelu(x) {
  for (let i = 0; i < x.length; i++) {
    x[i] /= 1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x[i] + 0.044715 * x[i] ** 3));
  }
  return x;
}

function addTo(x, other) {
  for (let i = 0; i < x.length; i++) x[i] += other[i];
  return x;
}

/** `encode_time` of social/networks.py. */
function encodeTime(frame) {
  const phases = TIME_PERIODS.map((period) => 2 * Math.PI * (frame % period) / period);
  return [...phases.map(Math.sin), ...phases.map(Math.cos)];
}
