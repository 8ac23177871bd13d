"use strict";
// The page that listens by itself; listener.py tells what it holds.
const byId = (id) => document.getElementById(id);
const FPS = 25, HOLD = 0.1, PIECE = 0.01;  // Seconds that B's voice waits for its face, and between messages of the sound's thread.
const NOTHING_HEARD = "Listening. Nothing is recorded.";

async function unpack() {
  const packed = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const header = JSON.parse(byId("header").textContent);
  const tables = readTables(header.tables, await unzip(packed)), weights = {};
  for (const name of header.weights) weights[name] = readFrame(tables[name], 0);
  return { ...header, tables, weights };
}

/** What went wrong, in words for who stands before the page. */
function explain(error) {
  return {
    NotAllowedError: "The microphone was refused. Allow it for this page, then start again.",
    NotFoundError: "There is no microphone.",
    NotReadableError: "The microphone cannot be opened: another program may have it.",
    EncodingError: "That file holds no sound that this browser knows.",
  }[error.name] ?? `This does not work here: ${error.message}`;
}

/**
 * Microphone and loudspeaker. `piece` is called with what both voices have said since the last call; B's is heard after HOLD, and where
 * its face is made of what it will say, by `ahead` frames later still.
 */
class Sound {
  static async open(headphones, ahead, piece) {
    if (!navigator.mediaDevices || !window.AudioWorkletNode) {
      throw new Error("browsers give the microphone to pages from https, localhost or a file alone");
    }
    const wanted = { echoCancellation: !headphones, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
    const microphone = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    const context = new AudioContext({ latencyHint: "interactive" });
    try {
      await context.resume();
      // Not as a blob: a page that was opened from disk may not load its own.
      await context.audioWorklet.addModule(`data:text/javascript,${encodeURIComponent(byId("worklet").textContent)}`);
    } catch (error) {
      microphone.getTracks().forEach((track) => track.stop());
      await context.close();
      throw error;
    }
    return new Sound(context, microphone, ahead, piece);
  }

  constructor(context, microphone, ahead, piece) {
    const { sampleRate } = this.context = context;
    this.microphone = microphone, this.hold = Math.round(HOLD * sampleRate);
    const hold = this.hold + Math.round(ahead / FPS * sampleRate), processorOptions = { hold, piece: Math.round(PIECE * sampleRate) };
    this.node = new AudioWorkletNode(context, "sound", { processorOptions, channelCount: 1, outputChannelCount: [1] });
    this.node.port.onmessage = ({ data }) => piece(data);
    context.createMediaStreamSource(microphone).connect(this.node).connect(context.destination);
  }

  get rate() {
    return this.context.sampleRate;
  }

  /** Samples since the context's beginning that have left the loudspeaker. */
  played() {
    const { context } = this, { contextTime, performanceTime } = context.getOutputTimestamp();
    // Before the first sound has left, and where a browser does not know, it is the latency that it tells.
    if (!performanceTime) return (context.currentTime - (context.outputLatency || 0.03)) * this.rate;
    return (contextTime + (performance.now() - performanceTime) / 1000) * this.rate;
  }

  /** B says a file's sound from now on; null: nothing. */
  async say(file) {
    if (!file) return this.node.port.postMessage(null);
    const sound = await this.context.decodeAudioData(await file.arrayBuffer());  // At the context's rate.
    const words = new Float32Array(sound.length);
    for (let channel = 0; channel < sound.numberOfChannels; channel++) {
      sound.getChannelData(channel).forEach((x, i) => { words[i] += x / sound.numberOfChannels; });
    }
    this.node.port.postMessage(words);
  }

  close() {
    this.microphone.getTracks().forEach((track) => { track.onended = null, track.stop(); });
    return this.context.close();
  }
}

class Listener {
  constructor(data, screen) {
    this.data = data, this.screen = screen;
    this.avatar = new Avatar(data.tables), this.head = new Head(data.tables), this.offsets = makeOffsets(data.tables);
    this.view = { yaw: 0, pitch: 0, distance: data.view.distance };
    this.rest();
  }

  /** Nobody is heard. */
  rest() {
    this.conversation = this.sound = null;
    this.motions = [new Float32Array(MOTION)], this.newest = 0;  // The last ones, and the number of the last.
    this.place = 0, this.came = performance.now();
    this.milliseconds = 0, this.drawMilliseconds = 0;
    this.changed = true;
  }

  begin(rate) {
    this.conversation = new Conversation(this.data, rate);
    this.newest = -1, this.first = null;
    this.setChoices();
  }

  setChoices() {
    if (!this.conversation) return;
    this.conversation.relation = this.data.relations.indexOf(byId("relation").value);
    this.conversation.guesses = byId("face").value === "guessed";
  }

  /** Both voices' next samples: see `SoundWorklet`. */
  hear({ end, heard, own, speaks }) {
    if (!this.conversation) return;
    this.first ??= end - heard.length;
    this.speaks = speaks;
    const began = performance.now(), made = this.conversation.push(heard, own);
    byId("level").value = loudness(heard);
    if (!made.length) return;
    this.milliseconds += 0.1 * ((performance.now() - began) / made.length - this.milliseconds);
    this.newest += made.length, this.came = performance.now();
    this.motions = [...this.motions, ...made].slice(-32);
  }

  /** Where B's motion is shown, in frames: by the loudspeaker where B speaks, else as soon as it is there. */
  wanted() {
    const newest = Math.max(this.newest, 0), follow = newest - 1 + Math.min((performance.now() - this.came) * FPS / 1000, 1);
    if (!this.speaks || !this.sound) return follow;
    const { rate, hold } = this.sound;
    return Math.min((this.sound.played() - this.first - hold) / rate * FPS - 0.5, newest);  // A frame is what its middle shows.
  }

  /** B's motion at a place between two frames. */
  motionAt(place) {
    const last = this.motions.length - 1, i = Math.min(Math.max(last - this.newest + place, 0), last), low = Math.floor(i), part = i - low;
    const a = this.motions[low], b = this.motions[Math.min(low + 1, last)];
    return a.map((x, k) => x + part * (b[k] - x));
  }

  /** Draws the head as it is now, in pixels. */
  draw(width, height) {
    const began = performance.now();
    const motion = this.motionAt(this.place), relation = this.data.relations.indexOf(byId("relation").value);
    this.avatar.pose(this.head.pose(motion), this.offsets?.at(this.place, relation, motion));
    this.screen.resize(width, height);
    this.screen.draw(makeSplats(this.avatar, makeCamera(this.data.view, this.view, width, height)), this.data.background);
    this.drawMilliseconds += 0.1 * (performance.now() - began - this.drawMilliseconds);
  }

  start() {
    const { canvas } = this.screen, button = byId("start"), relation = byId("relation"), face = byId("face");
    const say = (text) => { byId("message").textContent = text; };
    for (const name of this.data.relations) relation.add(new Option(name.replaceAll("_", " ").replace(",", ", "), name));
    relation.disabled = this.data.relations.length === 1;
    relation.onchange = face.onchange = () => { this.setChoices(), this.changed = true; };
    if (this.data.settings.ahead) face.options[1].remove();  // Nobody knows what you will say.
    byId("controls").onsubmit = (event) => event.preventDefault();
    canvas.style.background = `rgb(${this.data.background.map((c) => 255 * c)})`;
    turnByMouse(canvas, this.view, () => { this.changed = true; });
    new ResizeObserver(() => { this.changed = true; }).observe(canvas);
    const stop = async (text) => {
      const { sound } = this;
      this.rest();
      await sound?.close();
      button.textContent = "Start", button.disabled = false, byId("headphones").disabled = false;
      byId("level").value = -60, byId("numbers").textContent = "";
      say(text);
    };
    const attempt = (work) => work().catch((error) => say(explain(error)));
    const speak = () => this.sound && attempt(() => this.sound.say(byId("words").files[0]));
    byId("words").onchange = speak;
    button.onclick = async () => {
      if (this.sound) return stop("Stopped.");
      button.disabled = byId("headphones").disabled = true;
      say("Waiting for the microphone …");
      try {
        const sound = await Sound.open(byId("headphones").checked, this.data.settings.ahead, (piece) => this.hear(piece));
        this.begin(sound.rate), this.sound = sound;
        sound.microphone.getTracks()[0].onended = () => stop("The microphone is gone.");
      } catch (error) {
        return stop(explain(error));
      }
      button.textContent = "Stop", button.disabled = false;
      say(NOTHING_HEARD);
      return speak();
    };
    button.disabled = false;
    say("Press Start and speak.");
    let last = performance.now(), shown = 0;
    const tick = (now) => {
      requestAnimationFrame(tick);
      const most = Math.max(now - last, 0) * FPS / 1000 * 2, ahead = this.wanted() - this.place;
      last = now;
      // Time runs up to twice as fast, or stands still, where what it goes by changes; what is lost for long is leapt over.
      const step = ahead > 10 || ahead < -10 ? ahead : Math.min(Math.max(ahead, 0), most);
      this.place += step;
      if (!step && !this.changed) return;
      this.changed = false;
      const pixels = (length) => Math.max(Math.round(length * devicePixelRatio), 1);
      this.draw(pixels(canvas.clientWidth), pixels(canvas.clientHeight));
      if (!this.sound || now - shown < 500) return;
      shown = now;
      const late = (this.newest - this.place) * 1000 / FPS;
      byId("numbers").textContent =
        `a frame: ${this.milliseconds.toFixed(1)} ms to listen, ${this.drawMilliseconds.toFixed(1)} ms to draw, shown ${late.toFixed(0)} ms later`;
    };
    requestAnimationFrame(tick);
  }
}

/** Decibels of full scale. */
function loudness(samples) {
  return 10 * Math.log10(samples.reduce((sum, x) => sum + x * x, 0) / samples.length + 1e-12);
}

const ready = unpack().then((data) => {
  const listener = new Listener(data, new Screen(byId("view")));
  listener.start();
  return listener;
});
ready.catch((error) => { byId("message").textContent = `This page cannot work: ${error.message}`; });
