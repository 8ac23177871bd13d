"use strict";
// The button that records: nothing is stored but what is said between two presses of it.

class Recorder {
  /** tell(type, value): to the server. */
  constructor(tell) {
    this.tell = tell, this.name = this.since = null;
    setInterval(() => this.show(), 500);
  }

  get on() {
    return this.name !== null;
  }

  press() {
    this.tell("record", { on: !this.on });
  }

  /** A message of the server's; whether it was about this. */
  obey({ type, name, message }) {
    if (type === "recording") {
      this.name = name, this.since = performance.now();
      say("recorded", "");
    } else if (type === "recorded") {
      this.name = null;
      say("recorded", message);
    } else {
      return false;
    }
    this.show();
    return true;
  }

  /** The connection is gone, and a recording has ended with it. */
  leave() {
    if (!this.on) return;
    say("recorded", `The recording ended with the connection. The program keeps what it heard as ${this.name}.`);
    this.name = null;
    this.show();
  }

  show() {
    const button = byId("record");
    button.setAttribute("aria-pressed", this.on);
    button.firstChild.textContent = this.on ? `Recording, ${Math.floor((performance.now() - this.since) / 1000)} s ` : "Record ";
  }
}
