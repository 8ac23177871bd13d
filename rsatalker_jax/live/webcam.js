"use strict";
// A's face: a camera, the tracker that looks at it (tracker_worker.js) and A's motion. No picture leaves the page.

const CALIBRATION = 2000;  // Milliseconds of a face at rest, which is what motion is measured from.
const UNSEEN = 500;  // Milliseconds after which what was seen is no more A's motion.
const WIDEST = 640;  // Pixels of what the tracker is given.
const CAMERA_REASONS = {
  NotAllowedError: "This page may not use the camera. Allow it in the address bar of the browser, then try again.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is used by something else, or the system does not give it.",
  OverconstrainedError: "The camera that was chosen is gone. Choose another.",
};

/** The middle of each column. */
function medians(rows) {
  return rows[0].map((_, i) => rows.map((row) => row[i]).sort((a, b) => a - b)[rows.length >> 1]);
}

/** The rotation (row major) in a transformation whose 16 numbers stand by columns: its columns made orthonormal. */
function rotationOf(matrix) {
  const x = [matrix[0], matrix[1], matrix[2]], y = [matrix[4], matrix[5], matrix[6]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2], unit = (a) => a.map((value) => value / Math.sqrt(dot(a, a)));
  const first = unit(x), along = dot(first, y), second = unit(y.map((value, i) => value - along * first[i]));
  const third = [0, 1, 2].map((i) => {
    const j = (i + 1) % 3, k = (i + 2) % 3;
    return first[j] * second[k] - first[k] * second[j];
  });
  return [0, 1, 2].flatMap((i) => [first[i], second[i], third[i]]);
}

/** Axis times angle of a rotation (row major) by less than half a turn. */
function axisAngle(rotation) {
  const cosine = Math.min(Math.max((rotation[0] + rotation[4] + rotation[8] - 1) / 2, -1), 1), angle = Math.acos(cosine);
  const scale = angle < 1e-4 ? 0.5 : angle / (2 * Math.sin(angle));
  return [rotation[7] - rotation[5], rotation[2] - rotation[6], rotation[3] - rotation[1]].map((value) => scale * value);
}

/** From the tracker's outputs to motion: what differs from a face at rest, times a matrix (tools/fit_webcam.py). */
class FaceMap {
  /** map: { names, weights (56 rows), bias, least, most }; columns are the scores in the order of `names`, then the head's turn. */
  constructor(map) {
    this.map = map;
  }

  /** samples: [{ scores, matrix }] of a face at rest. */
  calibrate(samples) {
    this.scores = medians(samples.map(({ scores }) => [...scores]));
    this.rest = rotationOf(medians(samples.map(({ matrix }) => [...matrix])));
  }

  /** What differs from rest. The head's turn is in its own axes, wherever the camera stands. */
  features({ scores, matrix }) {
    const rotation = rotationOf(matrix), { rest } = this;
    const turned = [...Array(9).keys()].map((k) => {
      const i = Math.floor(k / 3), j = k % 3;
      return rest[i] * rotation[j] + rest[3 + i] * rotation[3 + j] + rest[6 + i] * rotation[6 + j];
    });
    return [...Array.from(scores, (score, i) => score - this.scores[i]), ...axisAngle(turned)];
  }

  motion(outputs) {
    const x = this.features(outputs), { weights, bias, least, most } = this.map;
    return Float32Array.from(weights, (row, i) => {
      let sum = bias[i];
      for (let k = 0; k < row.length; k++) sum += row[k] * x[k];
      return Math.min(Math.max(sum, least[i]), most[i]);
    });
  }
}

class Webcam {
  /** map: see FaceMap; tell(line, trouble): what is to be said; worker: where the tracker is. */
  constructor(map, tell, worker = "../tracker/tracker_worker.js") {
    this.face = new FaceMap(map), this.tell = tell, this.script = worker;
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
    this.durations = [];  // Milliseconds from a picture to what it shows, for the last ones.
  }

  get open() {
    return Boolean(this.stream);
  }

  /** Asks for a camera, loads the tracker and looks at the face at rest; throws what the browser throws. */
  async start(device) {
    this.stop();
    this.samples = [], this.seen = null, this.lost = null, this.calibrated = false, this.busy = true, this.fresh = false, this.frames = 0;
    const attempt = this.attempt = {};  // Which of several starts this is.
    if (!navigator.mediaDevices) throw new Error("Browsers give the camera to https and to this machine's own pages only.");
    try {
      this.tell("Asking for the camera …");
      // At its own size: what browsers scale themselves has shown no face.
      const stream = await navigator.mediaDevices.getUserMedia({ video: device ? { deviceId: { exact: device } } : true });
      if (this.attempt !== attempt) {
        for (const track of stream.getTracks()) track.stop();
        return;
      }
      this.stream = stream;
      for (const track of stream.getTracks()) track.onended = () => this.fail("The camera is gone.");
      this.tell("Loading the tracker …");
      this.worker = new Worker(this.script);
      this.worker.onmessage = ({ data }) => this.hear(data);
      this.worker.onerror = (event) => this.fail(`The tracker does not run: ${event.message ?? "its script cannot be loaded"}`);
      this.video.srcObject = stream;
      await this.video.play();
      this.watch(attempt);
    } catch (error) {
      if (this.attempt === attempt) throw error;  // What has been stopped meanwhile has no troubles.
    }
  }

  stop() {
    this.attempt = null;
    for (const track of this.stream?.getTracks() ?? []) track.onended = null, track.stop();
    this.worker?.terminate();
    this.stream = this.worker = this.video.srcObject = null;
    this.seen = null;
    this.tell("");
  }

  fail(message) {
    this.stop();
    this.tell(message, true);
  }

  /** At every picture of the camera's: the newest is looked at as soon as the tracker is free. */
  watch(attempt) {
    const next = this.video.requestVideoFrameCallback
      ? (act) => this.video.requestVideoFrameCallback(act) : (act) => requestAnimationFrame(act);
    const each = () => {
      if (this.attempt !== attempt) return;
      next(each);
      this.fresh = true, this.frames++;
      this.look();
    };
    next(each);
  }

  async look() {
    if (this.busy || !this.fresh) return;
    this.busy = true, this.fresh = false;
    const { video, worker } = this, time = performance.now(), share = Math.min(WIDEST / video.videoWidth, 1);
    try {
      const picture = await createImageBitmap(video, {
        resizeWidth: Math.round(share * video.videoWidth), resizeHeight: Math.round(share * video.videoHeight),
      });
      if (this.worker === worker) worker.postMessage({ picture, time }, [picture]);
    } catch (error) {  // Between two cameras there is no picture.
      if (this.worker === worker) this.busy = false;
    }
  }

  hear({ loaded, names, trouble, time, scores, matrix }) {
    if (!this.open) return;
    if (trouble) {
      this.fail(`The tracker has failed: ${trouble}`);
    } else if (names) {
      if (names.join() !== this.face.map.names.join()) this.fail("The tracker is not the one that the map to motion was made for.");
    } else {
      this.busy = false;
      if (loaded) this.tell("Look at the camera, your face at rest, for two seconds.");
      else this.take({ time, scores, matrix });
      this.look();
    }
  }

  take({ time, scores, matrix }) {
    const now = performance.now();
    this.durations.push(now - time);
    if (this.durations.length > 100) this.durations.shift();
    if (!scores) {
      this.lost ??= now;
      if (now - this.lost > UNSEEN) this.tell("No face is seen.");
      return;
    }
    this.lost = null;
    if (!this.calibrated) {
      this.tell("Look at the camera, your face at rest, for two seconds.");
      this.samples.push({ time, scores, matrix });
      if (time - this.samples[0].time < CALIBRATION) return;
      this.face.calibrate(this.samples);
      this.calibrated = true, this.samples = [];
    }
    this.seen = { time, motion: this.face.motion({ scores, matrix }) };
    this.tell("Your face is seen.");
  }

  /** A's motion now, 56 numbers, or null where it is not seen. */
  motion(now) {
    if (!this.seen) return null;
    if (now - this.seen.time < UNSEEN) return this.seen.motion;
    if (this.lost === null) this.tell(this.busy ? "The camera's pictures are looked at too slowly here." : "The camera gives no pictures.");
    return null;
  }
}

/** Joins what the page has for the camera to a Webcam, which it returns. about: { map }, or { trouble } where there can be none. */
function offerCamera({ map, trouble }) {
  const box = byId("camera"), list = byId("cameras"), preview = byId("preview");
  box.disabled = !map;
  if (!map) {
    say("seen", `Your face is not seen: ${trouble}.`);
    return null;
  }
  const webcam = new Webcam(map, (line, failed = false) => {
    if (failed) box.checked = false;
    preview.hidden = !box.checked;
    say("seen", line || "Your face is not seen.");
  });
  preview.append(webcam.video);
  box.onchange = list.onchange = async () => {
    if (!box.checked) {
      webcam.stop();
      return;
    }
    try {
      await webcam.start(list.value);
      await listDevices("cameras", "videoinput", "Camera");
    } catch (error) {
      webcam.fail(CAMERA_REASONS[error.name] ?? error.message);
    }
  };
  return webcam;
}
