"use strict";
// The page of a conversation; protocol.py tells what it and the server say to each other.

const HOLD = 1, VOICED = 2;
const HELD = 2;  // Frames of B's sound that are held back while it speaks.
const STALE = 0.5;  // Seconds after which a frame of A's is not sent any more.
const RETRIES = [500, 1000, 2000, 4000, 8000];  // Milliseconds until a dropped socket is opened again.
const REASONS = {
  NotAllowedError: "This page may not use the microphone. Allow it in the address bar of the browser, then start again.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is used by something else, or the system does not give it.",
  OverconstrainedError: "The microphone that was chosen is gone. Choose another.",
};

/** Decibels above -60, for a meter. */
const loudness = (level) => Math.max(60 + 20 * Math.log10(level + 1e-6), 0);

/** Root mean square of 16-bit samples, full scale being 1. */
function measureLevel(sound) {
  let power = 0;
  for (const x of sound) power += x * x;
  return Math.sqrt(power / sound.length) / 32768;
}

/** The face: draws a motion whenever it is given one. */
class Face {
  constructor(about, tables, canvas) {
    this.screen = new Screen(canvas);
    this.wear(about, tables);
    this.view = { yaw: 0, pitch: 0, distance: about.view.distance };
    this.changed = true;
    turnByMouse(canvas, this.view, () => { this.changed = true; });
    new ResizeObserver(() => { this.changed = true; }).observe(canvas);
  }

  /** Is somebody from now on; about: what is to be known of their avatar. */
  wear(about, tables) {
    this.about = { ...this.about, ...about }, this.head = new Head(tables), this.avatar = new Avatar(tables);
    this.offsets = makeOffsets(tables);
    this.motion = undefined, this.changed = true;
    this.screen.canvas.style.background = `rgb(${about.background.map((c) => 255 * c)})`;
  }

  /** motion: 56 numbers; frame: of the conversation. Nothing is done where neither they nor the view are new. */
  show(motion, frame) {
    if (motion === this.motion && !this.changed) return;
    if (motion !== this.motion) {
      this.avatar.pose(this.head.pose(motion), this.offsets?.at(frame, this.about.relations.indexOf(relation()), motion));
    }
    this.motion = motion, this.changed = false;
    const { canvas } = this.screen, pixels = (length) => Math.max(Math.round(length * devicePixelRatio), 1);
    this.screen.resize(pixels(canvas.clientWidth), pixels(canvas.clientHeight));
    const camera = makeCamera(this.about.view, this.view, canvas.width, canvas.height);
    this.screen.draw(makeSplats(this.avatar, camera), this.about.background);
  }
}

/** The sound card: A's microphone and B's loudspeaker, which go on while sockets come and go. */
class Sound {
  /** hear({ sound, level, time }): a frame of A's is over. report: see SoundClock. */
  static async open({ microphone, headphones }, hear, report, lost) {
    if (!navigator.mediaDevices || !window.AudioWorkletNode) {
      throw new Error("Browsers give the microphone to https and to this machine's own pages only: open the link at 127.0.0.1.");
    }
    const sound = new Sound();
    // The rate is the sound card's: worklets resample, as not every browser does.
    sound.context = new AudioContext({ latencyHint: "interactive" });
    try {
      sound.stream = await navigator.mediaDevices.getUserMedia({ audio: {
        channelCount: 1, echoCancellation: !headphones, noiseSuppression: false, autoGainControl: false,
        ...(microphone && { deviceId: { exact: microphone } }),
      } });
      for (const name of ["resampler", "microphone", "loudspeaker"]) await sound.context.audioWorklet.addModule(`../assets/${name}.js`);
      const { context } = sound;
      sound.microphone = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
      sound.loudspeaker = new AudioWorkletNode(context, "loudspeaker", {
        numberOfInputs: 0, outputChannelCount: [1], processorOptions: { held: HELD },
      });
      sound.microphone.port.onmessage = ({ data }) => hear(data);
      sound.loudspeaker.port.onmessage = ({ data }) => report(data);
      context.createMediaStreamSource(sound.stream).connect(sound.microphone);
      sound.loudspeaker.connect(context.destination);
      for (const track of sound.stream.getTracks()) track.onended = lost;
      await context.resume();
    } catch (error) {
      sound.close();
      throw error;
    }
    return sound;
  }

  close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context.close();
  }

  /** Times of the context: of what is computed now, and of what leaves the loudspeaker now. */
  times(now) {
    const { contextTime, performanceTime } = this.context.getOutputTimestamp();
    const made = this.context.currentTime;
    // Before the first sound has left, and where a browser does not know, it is the latency that it tells.
    const heard = performanceTime > 0 ? contextTime + (now - performanceTime) / 1000 : made - (this.context.outputLatency || 0.03);
    return { made, heard: Math.min(heard, made) };
  }
}

class Conversation {
  constructor(about, face) {
    this.about = about, this.face = face, this.clock = new SoundClock();
    this.shown = new Float32Array(56);  // At rest.
    this.sound = null, this.socket = null, this.webcam = null, this.tries = 0;
    this.recorder = new Recorder((type, value) => this.tell(type, value));
    this.transcript = new Transcript(byId("transcript"));
    this.latencies = [], this.trips = [], this.underruns = 0, this.lost = 0;
  }

  get running() {
    return this.sound !== null;
  }

  async start() {
    say("trouble", ""), say("status", "Asking for the microphone …");
    byId("start").disabled = true;
    try {
      const settings = { microphone: byId("microphone").value, headphones: byId("headphones").checked };
      const lost = () => this.stop("The microphone is gone.");
      this.sound = await Sound.open(settings, (frame) => this.hear(frame), (report) => this.report(report), lost);
      this.tries = 0;
      this.connect();
      await listDevices("microphone", "audioinput", "Microphone");
    } catch (error) {
      this.stop(REASONS[error.name] ?? error.message);
    } finally {
      byId("start").disabled = false;
    }
  }

  stop(trouble = "") {
    clearTimeout(this.retry);
    this.sound?.close();
    this.sound = null;
    this.leave();
    say("status", "Stopped."), say("trouble", trouble);
    byId("level-a").value = byId("level-b").value = 0;
    showButtons();
  }

  leave() {
    const { socket } = this;
    this.socket = null, this.ready = false;
    this.recorder.leave();
    socket?.close();
  }

  connect() {
    const socket = this.socket = new WebSocket(location.href.replace(/^http/, "ws").replace(/[?#].*/, "") + "socket");
    socket.binaryType = "arraybuffer";
    this.sent = 0, this.ends = new Map(), this.lead = 1, this.place = this.reported = null;
    this.clock.restart();
    this.sound.loudspeaker.port.postMessage(null);
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data === "string") this.obey(JSON.parse(data));
      else this.answer(data);
    };
    socket.onclose = () => {
      if (socket !== this.socket) return;
      this.leave();
      const wait = RETRIES[Math.min(this.tries++, RETRIES.length - 1)];
      say("status", `The connection is lost; trying again in ${wait / 1000} s.`);
      this.retry = setTimeout(() => this.connect(), wait);
      showButtons();
    };
  }

  /** Not for a moment between the end of a socket and its notice. */
  get open() {
    return this.ready && this.socket.readyState === WebSocket.OPEN;
  }

  tell(type, value = {}) {
    if (this.open) this.socket.send(JSON.stringify({ type, ...value }));
  }

  /** A frame of A's is over. */
  hear({ sound, level, time }) {
    byId("level-a").value = loudness(level);
    if (!this.open) return;
    // After the page has stood still nobody wants answers to what was said meanwhile.
    const late = Math.max(this.sound.context.currentTime - time, 0);
    if (late > STALE) {
      this.lost++;
      return;
    }
    const seen = this.webcam?.motion(performance.now()) ?? [];
    const message = new DataView(new ArrayBuffer(4 + 2 * sound.length + 4 * seen.length));
    message.setUint32(0, this.sent, true);
    new Int16Array(message.buffer, 4, sound.length).set(sound);
    new Float32Array(message.buffer, 4 + 2 * sound.length).set(seen);
    this.socket.send(message.buffer);
    this.ends.set(this.sent, performance.now() - 1000 * late);
    this.ends.delete(this.sent - 200);
    this.sent++;
  }

  answer(data) {
    const view = new DataView(data), number = view.getUint32(0, true), flags = view.getUint32(4, true);
    const motion = new Float32Array(data.slice(8, 232)), sound = new Int16Array(data.slice(232));
    if (this.ends.has(number)) keepLast(this.trips, performance.now() - this.ends.get(number));
    this.clock.add(number, motion);
    this.holding = Boolean(flags & HOLD);
    byId("level-b").value = flags & VOICED ? loudness(measureLevel(sound)) : 0;
    this.sound.loudspeaker.port.postMessage({ number, flags, sound }, [sound.buffer]);
  }

  report(report) {
    this.clock.report(report);
    this.underruns = report.underruns, this.stored = report.stored;
    if (this.ready && report.position !== null) this.noteDue(report);
  }

  /**
   * Latency: from the end of a frame of A's to the moment at which its answer alone is due on the screen (the frame's middle), however
   * rarely the screen draws.
   */
  noteDue({ position, time }) {
    const place = position / 640 - 0.5, now = performance.now(), { made, heard } = this.sound.times(now), last = this.reported;
    const due = now + 1000 * (time - made + (1 - this.lead) * (made - heard));
    this.reported = { place, due };
    if (!last || place < last.place || place - last.place > 25) return;
    for (let frame = Math.ceil(last.place); frame < place; frame++) {
      if (!this.ends.has(frame)) continue;
      keepLast(this.latencies, last.due + (due - last.due) * (frame - last.place) / (place - last.place) - this.ends.get(frame));
    }
  }

  obey(message) {
    if (this.recorder.obey(message)) return;
    if (message.type === "ready") {
      this.ready = true, this.tries = 0;
      say("status", "Listening. Speak."), say("trouble", "");
      this.tell("relation", { relation: relation() });
      this.tell("headphones", { on: byId("headphones").checked });
      this.transcript.part();
      showButtons();
    } else if (message.type === "saying") {
      say("saying", message.text);
      this.transcript.say(message.text);
    } else if (message.type === "heard") {
      this.transcript.hear(message.turn, message.text);
    } else if (message.type === "cut") {
      say("saying", "");
      this.transcript.cut();
    } else if (message.type === "trouble") {
      say("trouble", message.message);
    } else if (message.type === "end") {
      this.stop(message.message);
    }
  }

  /** Draws what is to be seen now. */
  draw(now) {
    const place = this.ready ? this.findPlace(now) : null;
    if (place !== null) {
      this.place = place;
      this.shown = this.clock.motionAt(place) ?? this.shown;
    }
    this.face.show(this.shown, this.place ?? 0);
  }

  /**
   * The place in B's sound, in frames, that belongs to this moment: what leaves the loudspeaker while B speaks. A silent face need
   * not wait for the loudspeaker's silence; in between the face is a little faster or slower for a moment.
   */
  findPlace(now) {
    const { made, heard } = this.sound.times(now), delay = Math.max(made - heard, 1e-3);
    const most = 0.3 * Math.min((now - (this.before ?? now)) / 1000, 0.1) / delay;
    this.before = now;
    const wanted = this.holding ? 0 : 1;
    this.lead += Math.min(Math.max(wanted - this.lead, -most), most);
    const place = this.clock.at(heard + this.lead * delay);
    if (place === null) return null;
    // Time does not go back, even where two clocks disagree by a little.
    return this.place === null || place > this.place || place < this.place - 5 ? place : this.place;
  }
}

function keepLast(list, value) {
  list.push(value);
  if (list.length > 500) list.shift();
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

function say(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

function relation() {
  const words = ["blood", "equal"].map((name) => document.querySelector(`[name=${name}]:checked`).value);
  return words[0] === words[1] ? words[0] : words.join(",");
}

/** Takes the next of three. */
function turnOver(name) {
  const buttons = [...document.querySelectorAll(`[name=${name}]`)], chosen = buttons.findIndex((button) => button.checked);
  buttons[(chosen + 1) % buttons.length].click();
}

/** What there is to choose from, in the list `id`, behind its first; `name` is of one without a label. */
async function listDevices(id, wanted, name) {
  const found = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind, deviceId }) => kind === wanted && deviceId);
  const list = byId(id), chosen = list.value;
  list.replaceChildren(list.options[0], ...found.map(({ deviceId, label }, i) => new Option(label || `${name} ${i + 1}`, deviceId)));
  list.value = found.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
}

let talk = null;

function showButtons() {
  byId("start").firstChild.textContent = talk.running ? "Stop " : "Start ";
  for (const name of ["quiet", "play", "say", "write", "record"]) byId(name).disabled = !talk.ready;
}

function showNumbers() {
  if (!talk.ready || talk.latencies.length < 5) return;
  const recent = talk.latencies.slice(-100);
  say("numbers", `Answers are due ${Math.round(median(recent))} ms after the end of what is heard ` +
    `(there and back ${Math.round(median(talk.trips.slice(-100)))} ms). Gaps in its voice: ${talk.underruns}. ` +
    (talk.webcam?.seen ? `What your face does is known ${Math.round(median(talk.webcam.durations))} ms after its picture. ` : "") +
    (talk.lost ? `This page stood still: ${(0.04 * talk.lost).toFixed(1)} s of you were not heard.` : ""));
}

const KEYS = { s: "start", q: "quiet", p: "play", h: "headphones", r: "record", c: "camera" };

function listen() {
  byId("start").onclick = () => (talk.running ? talk.stop() : talk.start());
  byId("quiet").onclick = () => talk.tell("stop");
  byId("record").onclick = () => talk.recorder.press();
  byId("play").onclick = () => talk.tell("play", { recording: byId("recording").selectedIndex });
  for (const [form, field, type] of [["words", "text", "say"], ["writing", "letter", "write"]]) {
    byId(form).onsubmit = (event) => {
      event.preventDefault();
      const text = byId(field).value.trim();
      if (!text || !talk.ready) return;
      say("trouble", "");
      talk.tell(type, { text });
      byId(field).value = "";
    };
  }
  for (const button of document.querySelectorAll("[type=radio]")) button.onchange = () => talk.tell("relation", { relation: relation() });
  // The echo canceller is chosen when the microphone is opened.
  byId("headphones").onchange = byId("microphone").onchange = async () => {
    if (!talk.running) return;
    talk.stop();
    await talk.start();
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") talk.tell("stop"), document.activeElement.blur();
    if (event.target.matches("#text, #letter, select")) return;
    const key = event.key.toLowerCase();
    if (key in KEYS) byId(KEYS[key]).click();
    else if (key === "b") turnOver("blood");
    else if (key === "e") turnOver("equal");
    else if (key === "t" && !byId("words").hidden) byId("text").focus(), event.preventDefault();
    else if (key === "w" && !byId("writing").hidden) byId("letter").focus(), event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!talk.ready) return;
    say("status", document.hidden ? "In the background: heard, but not drawn." : "Listening. Speak.");
  });
}

/** The tables of an avatar; person: null: of the one that the page begins with. */
async function fetchTables(about, person = null) {
  const response = await fetch(`${BASE}/avatar${person === null ? "" : `/${encodeURIComponent(person)}`}`);
  if (!response.ok) throw new Error(response.statusText);
  return readTables(about.tables, await unzip(await response.arrayBuffer()));
}

/** Lets people choose among several avatars; a conversation goes on meanwhile. */
function offerFaces(about) {
  const others = about.others ?? {};
  byId("faces").hidden = !Object.keys(others).length;
  byId("face").replaceChildren(...[about.person, ...Object.keys(others)].map((name) => new Option(name)));
  byId("face").onchange = async () => {
    const name = byId("face").value;
    const [of, person] = name in others ? [others[name], name] : [about, null];
    try {
      const tables = await fetchTables(of, person);
      if (byId("face").value === name) talk.face.wear(of, tables);
    } catch (error) {
      say("trouble", `The face of ${name} did not come: ${error.message}`);
    }
  };
}

const ready = (async () => {
  const about = await ask("/state");
  const tables = await fetchTables(about);
  byId("conversation").hidden = false;
  const [blood, equal] = about.relation === "unknown" ? ["unknown", "unknown"] : about.relation.split(",");
  document.querySelector(`[name=blood][value=${blood}]`).checked = document.querySelector(`[name=equal][value=${equal}]`).checked = true;
  byId("recordings").hidden = !about.recordings.length;
  byId("recording").replaceChildren(...about.recordings.map((name) => new Option(name)));
  byId("words").hidden = !about.speaks;
  byId("record").hidden = !about.records;
  if (about.records) say("storing", "It is stored while you record, and only then.");
  byId("writing").hidden = !about.answerer;
  byId("text").maxLength = byId("letter").maxLength = about.longest_text;
  const { way, away } = describeWay(about);
  say("way", way);
  byId("away").hidden = !away;
  if (away) say("away", `Your words leave this machine: they go to ${about.answerer.where}.`);
  talk = new Conversation(about, new Face(about, tables, byId("view")));
  talk.webcam = offerCamera(about.camera);
  offerFaces(about);
  listen();
  setInterval(showNumbers, 500);
  const tick = (now) => {
    requestAnimationFrame(tick);
    talk.draw(now);
  };
  requestAnimationFrame(tick);
  return talk;
})();
ready.catch((error) => {
  byId("conversation").hidden = true;
  byId("failed").hidden = false;
  byId("reason").textContent = error.message;
});
