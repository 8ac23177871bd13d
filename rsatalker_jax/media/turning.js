"use strict";

/** The mouse on a canvas changes a view ({ yaw, pitch, distance }, see `makeCamera`) and calls `changed`. */
function turnByMouse(canvas, view, changed) {
  const turn = (changes) => { Object.assign(view, changes), changed(); };
  const { distance } = view;
  canvas.onpointerdown = (event) => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = (event) => {
    if (!event.buttons) return;
    const pitch = view.pitch + 0.008 * event.movementY;
    turn({ yaw: view.yaw - 0.008 * event.movementX, pitch: Math.min(Math.max(pitch, -1.5), 1.5) });
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const wanted = view.distance * Math.exp(0.001 * event.deltaY);
    turn({ distance: Math.min(Math.max(wanted, distance / 4), distance * 4) });
  }, { passive: false });
  canvas.ondblclick = () => turn({ yaw: 0, pitch: 0, distance });
}
