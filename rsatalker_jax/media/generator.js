"use strict";
// The causal motion generator, one frame at a time: motion/generator.py and motion/layers.py with their history, as motion/folding.py
// packs them; layers as in layers.js.

const NORM_EPSILON = 1e-6;

/** LayerNorm, with a scale and a shift for each relation or the same for all. */
class Norm {
  constructor(weights, name, features) {
    this.scale = weights[`${name}/scale`], this.shift = weights[`${name}/shift`];
    this.out = new Float32Array(features);
  }

  apply(x, relation) {
    const { scale, shift, out } = this, count = out.length, row = scale.length > count ? relation * count : 0;
    let mean = 0, variance = 0;
    for (let i = 0; i < count; i++) mean += x[i];
    mean /= count;
    for (let i = 0; i < count; i++) variance += (x[i] - mean) ** 2;
    const factor = 1 / Math.sqrt(variance / count + NORM_EPSILON);
    for (let i = 0; i < count; i++) out[i] = (x[i] - mean) * factor * scale[row + i] + shift[row + i];
    return out;
  }
}

/** `FrameConv`: the frames before the first are zeros. */
class FrameConv {
  constructor(weights, name, outputs, kernel, stride = 1) {
    this.taps = new Dense(weights, `${name}/taps`, outputs);
    this.kernel = kernel, this.stride = stride, this.width = this.taps.inputs / kernel;
    this.span = (kernel - 1) * stride + 1;
    this.frames = new Float32Array(this.span * this.width);  // A ring, in which `next` is the oldest.
    this.next = 0;
    this.seen = new Float32Array(this.taps.inputs);
  }

  apply(x) {
    const { frames, width, span, stride, kernel, seen } = this;
    frames.set(x, this.next * width);
    this.next = (this.next + 1) % span;
    for (let i = 0; i < kernel; i++) {
      const start = (this.next + i * stride) % span * width;
      for (let j = 0; j < width; j++) seen[i * width + j] = frames[start + j];
    }
    return this.taps.apply(seen);
  }
}

/**
 * `WindowAttention`: this frame's query, and keys and values of this one and the `reach` before it, of which the first `skipped` of a
 * conversation count for nothing.
 */
class WindowAttention {
  constructor(weights, name, { features, heads, reach }, skipped = 0) {
    const dense = (part) => new Dense(weights, `${name}/${part}`, features);
    this.query = dense("query"), this.key = dense("key"), this.value = dense("value"), this.output = dense("out");
    this.bias = weights[`${name}/distance_bias`];
    this.heads = heads, this.room = reach + 1, this.features = features;
    this.keys = new Float32Array(this.room * features), this.values = new Float32Array(this.room * features);
    this.count = -skipped, this.next = 0;
    this.logits = new Float64Array(this.room);
    this.mixed = new Float64Array(features);
  }

  apply(x, context) {
    const { room, features, heads, keys, values, bias, logits, mixed } = this, size = features / heads;
    const query = this.query.apply(x), newest = this.next;
    keys.set(this.key.apply(context), newest * features);
    values.set(this.value.apply(context), newest * features);
    this.next = (newest + 1) % room, this.count = Math.min(this.count + 1, room);
    mixed.fill(0);
    for (let h = 0, start = 0; h < heads; h++, start += size) {
      let most = -Infinity, sum = 0;
      for (let age = 0; age < this.count; age++) {
        const row = (newest - age + room) % room * features + start;
        let product = 0;
        for (let i = 0; i < size; i++) product += query[start + i] * keys[row + i];
        logits[age] = product / Math.sqrt(size) + bias[h * room + room - 1 - age];
        most = Math.max(most, logits[age]);
      }
      for (let age = 0; age < this.count; age++) sum += logits[age] = Math.exp(logits[age] - most);
      for (let age = 0; age < this.count; age++) {
        const row = (newest - age + room) % room * features + start, weight = logits[age] / sum;
        for (let i = 0; i < size; i++) mixed[start + i] += weight * values[row + i];
      }
    }
    return this.output.apply(mixed);
  }
}

class TransformerLayer {
  constructor(weights, name, settings, skipped = 0) {
    const { features, mlp } = settings;
    this.attentionNorm = new Norm(weights, `${name}/attention_norm`, features);
    this.attention = new WindowAttention(weights, `${name}/attention`, settings, skipped);
    this.mlpNorm = new Norm(weights, `${name}/mlp_norm`, features);
    this.hidden = new Dense(weights, `${name}/mlp/hidden`, mlp);
    this.out = new Dense(weights, `${name}/mlp/out`, features);
  }

  /** Changes x. */
  apply(x, relation) {
    const normed = this.attentionNorm.apply(x, relation);
    addTo(x, this.attention.apply(normed, normed));
    return this.feed(x, relation);
  }

  /** Its MLP; changes x. */
  feed(x, relation) {
    return addTo(x, this.out.apply(gelu(this.hidden.apply(this.mlpNorm.apply(x, relation)))));
  }
}

/** One person's voice: features to the generator's width. */
class SpeechAdapter {
  constructor(weights, { features, speechHidden, speechLayers, speechKernel }) {
    const name = "speech_adapter";
    this.first = new FrameConv(weights, `${name}/context`, speechHidden, speechKernel);
    this.others = Array.from({ length: speechLayers - 1 }, (_, i) => ({
      norm: new Norm(weights, `${name}/context_norm_${i + 1}`, speechHidden),
      context: new FrameConv(weights, `${name}/context_${i + 1}`, speechHidden, speechKernel),
    }));
    this.out = new Dense(weights, `${name}/out`, features);
    this.norm = new Norm(weights, `${name}/norm`, features);
  }

  apply(speech) {
    const x = gelu(this.first.apply(speech));
    for (const { norm, context } of this.others) addTo(x, gelu(context.apply(norm.apply(x))));
    return this.norm.apply(this.out.apply(x));
  }
}

/** `OwnLookahead`: B's own voice, heard ahead of all else. */
class OwnLookahead extends TransformerLayer {
  constructor(weights, settings) {
    const { features, reach, ahead, adapterAhead } = settings, rest = ahead - adapterAhead, name = "own_lookahead";
    super(weights, name, { ...settings, reach: reach + rest }, adapterAhead);
    this.queryNorm = new Norm(weights, `${name}/attention_norm`, features);
    this.heard = new Float32Array((rest + 1) * features), this.features = features;
    this.late = new Float32Array(features);
  }

  /** heard: the adapter's output for B's newest frame. Returns what belongs to the frame `ahead` frames before it. */
  apply(heard) {
    const { features, late } = this;
    this.heard.copyWithin(0, features);
    this.heard.set(heard, this.heard.length - features);
    late.set(this.heard.subarray(0, features));
    addTo(late, this.attention.apply(this.queryNorm.apply(late), this.attentionNorm.apply(heard)));
    return this.feed(late);
  }
}

class MotionEncoder {
  constructor(weights, { features, motionKernel, motionStride, socialNorm }) {
    const name = "motion_encoder";
    this.context = new FrameConv(weights, `${name}/context`, features, motionKernel, motionStride);
    this.contextNorm = socialNorm ? new Norm(weights, `${name}/context_norm`, features) : null;
    this.out = new Dense(weights, `${name}/out`, features);
    this.norm = new Norm(weights, `${name}/norm`, features);
  }

  apply(motion, relation) {
    let x = this.context.apply(motion);
    if (this.contextNorm) x = this.contextNorm.apply(x, relation);
    return this.norm.apply(this.out.apply(gelu(x)));
  }
}

/** Eq. 5. */
class SocialFusion {
  constructor(weights, settings) {
    const { features, residual, queryTime } = settings, name = "social_fusion";
    const layers = { length: settings.encoderLayers };
    this.features = features, this.residual = residual, this.social = weights.social;
    this.join = new Dense(weights, `${name}/join`, features);
    this.layers = Array.from(layers, (_, i) => new TransformerLayer(weights, `${name}/layer_${i}`, settings));
    this.memoryNorm = new Norm(weights, `${name}/memory_norm`, features);
    this.time = queryTime ? new Dense(weights, `${name}/time`, features) : null;
    this.queryNorm = new Norm(weights, `${name}/query_norm`, features);
    this.attention = new WindowAttention(weights, `${name}/attention`, settings);
    this.frame = 0;
    this.joined = new Float32Array(2 * features);
  }

  apply(partner, speech, relation) {
    const { features, joined } = this;
    joined.set(partner), joined.set(speech, features);
    const encoded = this.join.apply(joined);
    for (const layer of this.layers) layer.apply(encoded, relation);
    const queries = this.social.slice(relation * features, (relation + 1) * features);
    if (this.time) {
      addTo(queries, this.time.apply(encodeTime(this.frame)));
      this.frame++;
    }
    const z = this.attention.apply(this.queryNorm.apply(queries), this.memoryNorm.apply(encoded));
    return this.residual ? addTo(addTo(z, queries), encoded) : z;
  }
}

class MotionDecoder {
  constructor(weights, settings) {
    const name = "motion_decoder", layers = { length: settings.decoderLayers };
    this.layers = Array.from(layers, (_, i) => new TransformerLayer(weights, `${name}/layer_${i}`, settings));
    this.norm = new Norm(weights, `${name}/norm`, settings.features);
    this.motion = new Dense(weights, `${name}/motion`, MOTION);
  }

  /** Changes z. */
  apply(z, relation) {
    for (const layer of this.layers) layer.apply(z, relation);
    return this.motion.apply(this.norm.apply(z));
  }
}

/** One conversation, as `MotionStream` has it. Arrays of weights are only read: many may share them. */
class MotionStream {
  constructor({ settings, weights }) {
    const { features, residual, usePartner, useOwnSpeech, ahead } = settings;
    this.residual = residual, this.useOwnSpeech = useOwnSpeech;
    this.mean = weights.motion_mean, this.std = weights.motion_std;
    this.own = new SpeechAdapter(weights, settings);
    this.lookahead = ahead ? new OwnLookahead(weights, settings) : null;
    this.nothing = new Float32Array(features);
    if (usePartner) {
      this.partner = new SpeechAdapter(weights, settings);
      this.motionEncoder = new MotionEncoder(weights, settings);
      this.partnerNorm = new Norm(weights, "partner_norm", features);
      this.partnerAttention = new WindowAttention(weights, "partner_attention", settings);
    }
    this.fusion = new SocialFusion(weights, settings);
    this.decoder = new MotionDecoder(weights, settings);
  }

  /** The features of one of the first `ahead` frames of B's voice, before the first `push`. */
  prime(speechB) {
    this.lookahead.apply(this.own.apply(speechB));
  }

  /**
   * B's motion (56), in an array of its own.
   * speechA, speechB: features of this frame (`Hearing`), B's of `ahead` frames later; motionA: (56); relation: its number, which may change at any frame.
   */
  push(speechA, motionA, speechB, relation) {
    let own = this.own.apply(speechB), partner = this.nothing;
    if (this.lookahead) own = this.lookahead.apply(own);
    if (!this.useOwnSpeech) own = this.nothing;
    if (this.partner) {
      const speech = this.partner.apply(speechA);
      const standardised = Float32Array.from(motionA, (x, i) => (x - this.mean[i]) / this.std[i]);
      const motion = this.motionEncoder.apply(standardised, relation);
      partner = this.partnerAttention.apply(this.partnerNorm.apply(speech), motion);  // Eq. 4.
      if (this.residual) addTo(addTo(partner, speech), motion);
    }
    const out = this.decoder.apply(this.fusion.apply(partner, own, relation), relation);
    return Float32Array.from(out, (x, i) => this.mean[i] + this.std[i] * x);
  }
}
