"use strict";
// Gaussians on the triangles of a head, and how a camera sees them. Follows splat_kernels: `projection.py`, `Config`.
const NEAR = 0.01, LOW_PASS = 0.3, ALPHA_MIN = 1 / 255, JACOBIAN_MARGIN = 0.3;
const ROW = 11;  // Floats of a splat: centre (2) and half box (2) in pixels, conic (3), colour (3), opacity.

// --- The avatar: Gaussians in the frames of its triangles, Eq. 6 and 7.

class Avatar {
  constructor(tables) {
    this.faces = tables.faces.values;
    this.binding = tables.binding.values;
    [this.means, this.opacities, this.sh] = ["means", "opacities", "sh"].map((name) => readFrame(tables[name], 0));
    this.coefficients = tables.sh.shape[2] / 3;
    this.axes = this.makeAxes(readFrame(tables.quats, 0), readFrame(tables.log_scales, 0));
    this.triangles = new Float32Array((this.faces.length / 3) * 12);
  }

  get length() {
    return this.binding.length;
  }

  /** Per Gaussian the columns of rotation times scale, row major, in the frame of its triangle. */
  makeAxes(quats, logScales) {
    const axes = new Float32Array(9 * this.length);
    for (let n = 0; n < this.length; n++) {
      let [w, x, y, z] = quats.subarray(4 * n, 4 * n + 4);
      const norm = Math.hypot(w, x, y, z);
      w /= norm, x /= norm, y /= norm, z /= norm;
      const [a, b, c] = logScales.subarray(3 * n, 3 * n + 3).map(Math.exp);
      axes.set([
        a * (1 - 2 * (y * y + z * z)), b * 2 * (x * y - w * z), c * 2 * (x * z + w * y),
        a * 2 * (x * y + w * z), b * (1 - 2 * (x * x + z * z)), c * 2 * (y * z - w * x),
        a * 2 * (x * z - w * y), b * 2 * (y * z + w * x), c * (1 - 2 * (x * x + y * y)),
      ], 9 * n);
    }
    return axes;
  }

  /**
   * Poses the triangles: per face size times rotation, row major (9), and centre (3).
   * vertices: 3 floats each, metres; offsets: 3 floats for each face, metres (Eq. 8), or none.
   */
  pose(vertices, offsets) {
    const { faces, triangles } = this;
    for (let f = 0; f < faces.length / 3; f++) {
      const p = 3 * faces[3 * f], q = 3 * faces[3 * f + 1], r = 3 * faces[3 * f + 2];
      const x = vertices[p], y = vertices[p + 1], z = vertices[p + 2];
      const ex = vertices[q] - x, ey = vertices[q + 1] - y, ez = vertices[q + 2] - z;
      const gx = vertices[r] - x, gy = vertices[r + 1] - y, gz = vertices[r + 2] - z;
      // Collapsed triangles: nothing is divided by less than a tenth of a micrometre.
      const length = Math.max(Math.hypot(ex, ey, ez), 1e-7), ax = ex / length, ay = ey / length, az = ez / length;
      let nx = ay * gz - az * gy, ny = az * gx - ax * gz, nz = ax * gy - ay * gx;
      const across = Math.max(Math.hypot(nx, ny, nz), 1e-7);
      nx /= across, ny /= across, nz /= across;
      const bx = ay * nz - az * ny, by = az * nx - ax * nz, bz = ax * ny - ay * nx;
      const size = (length + Math.abs(bx * gx + by * gy + bz * gz)) / 2;
      const o = 12 * f;
      triangles[o] = size * ax, triangles[o + 1] = size * nx, triangles[o + 2] = size * bx;
      triangles[o + 3] = size * ay, triangles[o + 4] = size * ny, triangles[o + 5] = size * by;
      triangles[o + 6] = size * az, triangles[o + 7] = size * nz, triangles[o + 8] = size * bz;
      for (let i = 0; i < 3; i++) {
        const corners = vertices[p + i] + vertices[q + i] + vertices[r + i];
        triangles[o + 9 + i] = corners / 3 + (offsets ? offsets[3 * f + i] : 0);
      }
    }
  }
}

/** Real spherical harmonics up to degree 3 at a unit vector, written into `out`. */
function shBasis(x, y, z, out) {
  const xx = x * x, yy = y * y, zz = z * z;
  out[0] = 0.28209479177387814;
  out[1] = -0.4886025119029199 * y, out[2] = 0.4886025119029199 * z, out[3] = -0.4886025119029199 * x;
  out[4] = 1.0925484305920792 * x * y, out[5] = -1.0925484305920792 * y * z;
  out[6] = 0.31539156525252005 * (3 * zz - 1);
  out[7] = -1.0925484305920792 * x * z, out[8] = 0.5462742152960396 * (xx - yy);
  out[9] = -0.5900435899266435 * y * (3 * xx - yy), out[10] = 2.890611442640554 * x * y * z;
  out[11] = -0.4570457994644658 * y * (5 * zz - 1), out[12] = 0.3731763325901154 * z * (5 * zz - 3);
  out[13] = -0.4570457994644658 * x * (5 * zz - 1), out[14] = 1.445305721320277 * z * (xx - yy);
  out[15] = -0.5900435899266435 * x * (xx - 3 * yy);
}

// --- The camera: OpenCV axes (x right, y down, z forward), pixel centres at +0.5.

/** Turned by yaw and pitch around the view's target. */
function makeCamera(view, { yaw, pitch, distance }, width, height) {
  const forward = [-Math.sin(yaw) * Math.cos(pitch), -Math.sin(pitch), -Math.cos(yaw) * Math.cos(pitch)];
  const right = [Math.cos(yaw), 0, -Math.sin(yaw)];
  const down = [
    forward[1] * right[2] - forward[2] * right[1],
    forward[2] * right[0] - forward[0] * right[2],
    forward[0] * right[1] - forward[1] * right[0],
  ];
  const eye = view.target.map((t, i) => t - distance * forward[i]);
  return { rows: [right, down, forward], eye, focal: view.focal * Math.min(width, height), width, height };
}

/** Splats that the camera sees, the farthest first: ROW floats each, and how many. */
function makeSplats(avatar, camera) {
  const { binding, means, axes, sh, opacities, coefficients, triangles } = avatar;
  const { rows: [wx, wy, wz], eye, focal, width, height } = camera;
  const cx = width / 2, cy = height / 2, basis = new Float64Array(16), away = new Float64Array(3);
  const limitX = (1 + JACOBIAN_MARGIN) * cx / focal, limitY = (1 + JACOBIAN_MARGIN) * cy / focal;
  const splats = new Float32Array(ROW * avatar.length), depths = new Float32Array(avatar.length);
  let count = 0;
  for (let n = 0; n < avatar.length; n++) {
    const t = 12 * binding[n], m = 3 * n;
    for (let i = 0; i < 3; i++) {
      const row = t + 3 * i;
      away[i] = triangles[row] * means[m] + triangles[row + 1] * means[m + 1] + triangles[row + 2] * means[m + 2] +
        triangles[t + 9 + i] - eye[i];
    }
    const dx = away[0], dy = away[1], dz = away[2];  // From the camera.
    const z = wz[0] * dx + wz[1] * dy + wz[2] * dz;
    if (z < NEAR) continue;
    const px = (wx[0] * dx + wx[1] * dy + wx[2] * dz) / z, py = (wy[0] * dx + wy[1] * dy + wy[2] * dz) / z;
    const jx = Math.min(Math.max(px, -limitX), limitX), jy = Math.min(Math.max(py, -limitY), limitY), scale = focal / z;
    let xx = LOW_PASS, xy = 0, yy = LOW_PASS;
    for (let k = 0; k < 3; k++) {
      const a = axes[9 * n + k], b = axes[9 * n + 3 + k], c = axes[9 * n + 6 + k];
      let hx = 0, hy = 0;
      for (let i = 0; i < 3; i++) {
        const row = t + 3 * i, world = triangles[row] * a + triangles[row + 1] * b + triangles[row + 2] * c;
        hx += (wx[i] - jx * wz[i]) * world, hy += (wy[i] - jy * wz[i]) * world;
      }
      xx += scale * hx * (scale * hx), xy += scale * hx * (scale * hy), yy += scale * hy * (scale * hy);
    }
    const det = xx * yy - xy * xy;
    if (!(det > 0)) continue;
    // The box around the ellipse on which alpha falls to ALPHA_MIN.
    const level = 2 * Math.log(opacities[n] / ALPHA_MIN);
    if (!(level > 0)) continue;
    const x = focal * px + cx, y = focal * py + cy, halfW = Math.sqrt(level * xx), halfH = Math.sqrt(level * yy);
    if (x + halfW <= 0 || x - halfW >= width || y + halfH <= 0 || y - halfH >= height) continue;
    const o = ROW * count;
    splats[o] = x, splats[o + 1] = y, splats[o + 2] = halfW, splats[o + 3] = halfH;
    splats[o + 4] = yy / det, splats[o + 5] = -xy / det, splats[o + 6] = xx / det;
    const norm = Math.hypot(dx, dy, dz);
    shBasis(dx / norm, dy / norm, dz / norm, basis);
    for (let channel = 0; channel < 3; channel++) {
      let color = 0.5;
      for (let k = 0; k < coefficients; k++) color += basis[k] * sh[(n * coefficients + k) * 3 + channel];
      splats[o + 7 + channel] = Math.max(color, 0);
    }
    splats[o + 10] = opacities[n];
    depths[count++] = z;
  }
  const order = sortByDepth(depths.subarray(0, count)), sorted = new Float32Array(ROW * count);
  for (let i = 0; i < count; i++) {
    const o = ROW * order[count - 1 - i];
    for (let k = 0; k < ROW; k++) sorted[ROW * i + k] = splats[o + k];
  }
  return { splats: sorted, count };
}

/** Indices by rising depth, equal ones in their order: the bits of positive floats rise with them. */
function sortByDepth(depths) {
  const bits = new Uint32Array(depths.buffer, depths.byteOffset, depths.length);
  let order = Uint32Array.from(depths.keys());
  for (const shift of [0, 16]) {
    const starts = new Uint32Array(65537), next = new Uint32Array(order.length);
    for (const key of bits) starts[((key >>> shift) & 65535) + 1]++;
    for (let i = 0; i < 65536; i++) starts[i + 1] += starts[i];
    for (const i of order) next[starts[(bits[i] >>> shift) & 65535]++] = i;
    order = next;
  }
  return order;
}
