"use strict";
// The page that plays an avatar; viewer.py tells what it holds.
const byId = (id) => document.getElementById(id);

async function unpack() {
  const packed = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const header = JSON.parse(byId("header").textContent);
  return { ...header, tables: readTables(header.tables, await unzip(packed)) };
}

class Player {
  constructor(data, screen) {
    this.data = data, this.screen = screen, this.avatar = new Avatar(data.tables);
    this.frames = data.tables.vertices.shape[0];
    this.frame = 0, this.posed = -1;
    this.view = { yaw: 0, pitch: 0, distance: data.view.distance };
    this.changed = true;
  }

  /** Draws the current frame from the current view, in pixels. */
  draw(width, height) {
    if (this.posed !== this.frame) {
      const { vertices, offsets } = this.data.tables;
      this.posed = this.frame;
      this.avatar.pose(readFrame(vertices, this.frame), offsets && readFrame(offsets, this.frame));
    }
    this.screen.resize(width, height);
    const camera = makeCamera(this.data.view, this.view, width, height);
    this.screen.draw(makeSplats(this.avatar, camera), this.data.background);
  }

  set playing(on) {
    this.began = on ? performance.now() - 1000 * this.frame / this.data.fps : null;
    byId("play").textContent = on ? "Pause" : "Play";
  }

  get playing() {
    return this.began !== null;
  }

  start() {
    const { canvas } = this.screen, button = byId("play"), slider = byId("time");
    byId("message").hidden = true;
    byId("bar").hidden = this.frames === 1;
    document.body.style.background = `rgb(${this.data.background.map((c) => 255 * c)})`;
    slider.max = this.frames - 1;
    button.onclick = () => { this.playing = !this.playing; };
    slider.oninput = () => { this.playing = false, this.frame = Number(slider.value), this.changed = true; };
    turnByMouse(canvas, this.view, () => { this.changed = true; });
    new ResizeObserver(() => { this.changed = true; }).observe(canvas);
    this.playing = this.frames > 1;
    const tick = (now) => {
      requestAnimationFrame(tick);
      if (this.playing) {
        const frame = Math.floor(Math.max(now - this.began, 0) * this.data.fps / 1000) % this.frames;
        this.changed ||= frame !== this.frame;
        this.frame = frame;
      }
      if (!this.changed) return;
      this.changed = false;
      slider.value = this.frame;
      const seconds = (frame) => (frame / this.data.fps).toFixed(2);
      byId("clock").textContent = `${seconds(this.frame)} / ${seconds(this.frames)} s`;
      const pixels = (length) => Math.max(Math.round(length * devicePixelRatio), 1);
      this.draw(pixels(canvas.clientWidth), pixels(canvas.clientHeight));
    };
    requestAnimationFrame(tick);
  }
}

const ready = unpack().then((data) => {
  const player = new Player(data, new Screen(byId("view")));
  player.start();
  return player;
});
ready.catch((error) => { byId("message").textContent = `This page cannot play: ${error.message}`; });
