"use strict";
// One person's head by its motion: `head_vertices` of head/flame.py and `pose_for` of head/pose.py, for a head at the origin.

/** Rodrigues' formula; row major. */
function rotationMatrix(x, y, z) {
  const square = x * x + y * y + z * z, angle = Math.sqrt(square), near = square < 1e-8;
  const s = near ? 1 - square / 6 : Math.sin(angle) / angle, c = near ? 0.5 - square / 24 : (1 - Math.cos(angle)) / square;
  return [
    1 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y,
    c * x * y + s * z, 1 - c * (x * x + z * z), c * y * z - s * x,
    c * x * z - s * y, c * y * z + s * x, 1 - c * (x * x + y * y),
  ];
}

class Head {
  /** Of the tables that `add_head` (tables.py) packs. */
  constructor(tables) {
    const names = ["template", "expressions", "correctives", "weights", "joints", "joint_expressions"];
    for (const name of names) this[name] = readFrame(tables[name], 0);
    this.count = this.template.length / 3;
    this.coefficients = tables.expressions.shape[2];  // Of the expression; `expressions` is (3 V, E), `joint_expressions` (6, E).
    this.vertices = new Float32Array(3 * this.count);
  }

  /** Vertices, metres, in an array that the next call overwrites. motion: 50 expression, 3 jaw, 3 head, as types.py has it. */
  pose(motion) {
    const { template, expressions, correctives, weights, vertices, coefficients } = this;
    // What is 0 has no effect, as much is while somebody is silent.
    const used = [...Array(Math.min(coefficients, 50)).keys()].filter((e) => motion[e] !== 0);
    const joint = Float64Array.from(this.joints);  // Neck and jaw.
    for (let i = 0; i < 6; i++) for (const e of used) joint[i] += this.joint_expressions[i * coefficients + e] * motion[e];
    const neck = rotationMatrix(motion[53], motion[54], motion[55]), jaw = rotationMatrix(motion[50], motion[51], motion[52]);
    const bent = [...neck, ...jaw];  // R - I of both.
    for (const i of [0, 4, 8, 9, 13, 17]) bent[i] -= 1;
    // Joints map x to R x + t: the neck about its own place, the jaw about its own and then with the neck.
    const neckT = [0, 1, 2].map((i) => joint[i] - dot3(neck, i, joint, 0));
    const both = Array.from({ length: 9 }, (_, k) => {
      const i = 3 * Math.floor(k / 3), j = k % 3;
      return neck[i] * jaw[j] + neck[i + 1] * jaw[3 + j] + neck[i + 2] * jaw[6 + j];
    });
    const bothT = [0, 1, 2].map((i) => dot3(neck, i, joint, 3) + neckT[i] - dot3(both, i, joint, 3));
    const x = new Float64Array(3), map = new Float64Array(12);
    for (let v = 0; v < this.count; v++) {
      for (let i = 0; i < 3; i++) {
        const row = (3 * v + i) * coefficients, bend = (3 * v + i) * 18;
        let sum = template[3 * v + i];
        for (const e of used) sum += expressions[row + e] * motion[e];
        for (let k = 0; k < 18; k++) sum += correctives[bend + k] * bent[k];
        x[i] = sum;
      }
      const withNeck = weights[2 * v], withJaw = weights[2 * v + 1], body = 1 - withNeck - withJaw;
      for (let k = 0; k < 9; k++) map[k] = (k % 4 ? 0 : body) + withNeck * neck[k] + withJaw * both[k];
      for (let i = 0; i < 3; i++) {
        vertices[3 * v + i] = dot3(map, i, x, 0) + withNeck * neckT[i] + withJaw * bothT[i];
      }
    }
    return vertices;
  }
}

/** Row `i` of a 3×3 matrix times the vector at `start`. */
function dot3(matrix, i, vector, start) {
  return matrix[3 * i] * vector[start] + matrix[3 * i + 1] * vector[start + 1] + matrix[3 * i + 2] * vector[start + 2];
}
