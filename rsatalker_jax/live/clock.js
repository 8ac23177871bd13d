"use strict";

/** Where in B's sound the loudspeaker is, in frames, from what loudspeaker.js reports; and B's motion there. */
class SoundClock {
  constructor() {
    this.restart();
  }

  restart() {
    this.reports = [], this.motions = new Map(), this.newest = -1;
  }

  /** The loudspeaker's `position` (samples of 16 kHz) at `time` of the context (s); it stands still where it is `starved`. */
  report({ position, time, starved }) {
    if (position === null) return;
    this.reports.push({ position, time, starved });
    if (this.reports.length > 100) this.reports.shift();
  }

  /** Frames at a time of the context, or null before the first. */
  at(time) {
    const { reports } = this;
    if (!reports.length) return null;
    const last = reports.at(-1);
    if (time >= last.time) return (last.position + (last.starved ? 0 : 16000 * Math.min(time - last.time, 0.03))) / 640;
    let i = reports.length - 1;
    while (i > 0 && reports[i - 1].time > time) i--;
    if (i === 0) return reports[0].position / 640;
    const a = reports[i - 1], b = reports[i], share = (time - a.time) / (b.time - a.time);
    return (a.position + share * (b.position - a.position)) / 640;
  }

  add(number, motion) {
    this.motions.set(number, motion);
    this.newest = number;
    this.motions.delete(number - 100);
  }

  /** Motion at a place in the sound: between the middles of the two frames there, or the newest. */
  motionAt(frames) {
    const place = Math.min(frames - 0.5, this.newest), low = Math.floor(place), share = place - low;
    const before = this.motions.get(low) ?? this.motions.get(low + 1), after = this.motions.get(low + 1) ?? before;
    if (!before) return null;
    return share === 0 ? before : before.map((x, i) => x + share * (after[i] - x));
  }
}
