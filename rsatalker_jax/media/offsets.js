"use strict";
// Offset corrections of the Gaussians (Eq. 8): `GaussianOffsetNet` of social/networks.py, as social/folding.py packs it.

class Offsets {
  /** Of the tables that `add_offsets` (tables.py) packs; faces: of the head, in all. */
  constructor(tables, faces) {
    const weights = {};
    for (const [name, table] of Object.entries(tables)) {
      if (name.startsWith("offsets/") && table.least) weights[name.slice("offsets/".length)] = readFrame(table, 0);
    }
    this.anchors = tables["offsets/anchors"].values;
    this.start = weights.start;
    this.hidden = new Float32Array(weights["out/kernel"].length / (3 * this.anchors.length));
    this.time = "time/kernel" in weights ? new Dense(weights, "time", this.hidden.length) : null;
    this.motion = "motion/kernel" in weights ? new Dense(weights, "motion", this.hidden.length) : null;
    this.mean = weights.motion_mean, this.std = weights.motion_std;
    this.out = new Dense(weights, "out", 3 * this.anchors.length);
    this.offsets = new Float32Array(3 * faces);  // Triangles without Gaussians have none.
  }

  /** Metres for each face, in an array that the next call overwrites. frame: of the conversation, whole or not; motion: of the head. */
  at(frame, relation, motion) {
    const { start, hidden, anchors, offsets, mean, std } = this, row = start.length > hidden.length ? relation * hidden.length : 0;
    for (let i = 0; i < hidden.length; i++) hidden[i] = start[row + i];
    if (this.time) addTo(hidden, this.time.apply(encodeTime(Math.max(frame, 0))));
    if (this.motion) addTo(hidden, this.motion.apply(Float32Array.from(motion, (x, i) => (x - mean[i]) / std[i])));
    const out = this.out.apply(gelu(hidden));
    for (let k = 0; k < anchors.length; k++) {
      for (let i = 0; i < 3; i++) offsets[3 * anchors[k] + i] = out[3 * k + i];
    }
    return offsets;
  }
}

/** Those of an avatar that has some; else null. */
function makeOffsets(tables) {
  return "offsets/anchors" in tables ? new Offsets(tables, tables.faces.values.length / 3) : null;
}
