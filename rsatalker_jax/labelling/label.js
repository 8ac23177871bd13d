"use strict";
// The annotator's page. server.py tells which conversations there are (`items`) and when a label is in the table.
const AXES = ["blood", "equal"];
const KEYS = { q: ["blood", "true"], w: ["blood", "false"], e: ["blood", "unknown"], a: ["equal", "true"], s: ["equal", "false"], d: ["equal", "unknown"] };
const COLORS = ["#1f5fae", "#b4501e"];  // Of speakers 1 and 2.
const SKIP = 5;  // Seconds.
let items = [], place = 0, scene = null, draft = {}, saving = Promise.resolve();
const sound = byId("sound");

async function begin() {
  let state;
  try {
    state = await ask("/state");
  } catch (error) {
    byId("reason").textContent = error instanceof Refusal ? error.message : "The program that serves this page does not answer.";
    byId("failed").hidden = false;
    return;
  }
  byId("failed").hidden = true;
  byId("labelling").hidden = false;
  items = state.conversations;
  byId("who").textContent = `Labels by ${state.annotator}`;
  byId("jump").replaceChildren(...items.map((_, i) => make("option", "", { value: i })));
  items.forEach((_, i) => nameOption(i));
  const open = items.findIndex((item) => !item.label);
  show(open < 0 ? 0 : open);
}

function nameOption(i) {
  const { name, split, label } = items[i];
  byId("jump").options[i].textContent = `${label ? "✓" : "·"} ${name}${split && ` (${split})`}`;
}

function countLabels() {
  const labelled = items.filter((item) => item.label).length;
  byId("progress").max = items.length;
  byId("progress").value = labelled;
  byId("count").textContent = `${labelled} of ${items.length} labelled`;
}

// --- One conversation.

async function show(i) {
  place = i;
  const { name, split, label, videos } = items[i];
  draft = items[i].draft ??= { blood: null, equal: null, confidence: null, ...label };  // Half answered ones wait here.
  document.title = `${name} · Relations`;
  byId("name").textContent = name + (split && ` · ${split}`);
  byId("jump").value = i;
  byId("previous").disabled = i === 0;
  byId("following").disabled = i === items.length - 1;
  for (const id of ["trouble", "saved"]) byId(id).textContent = "";  // What could not be saved stays said.
  byId("notes").hidden = true;
  if (label) byId("saved").textContent = "Labelled before; what you change is saved.";
  paint();
  countLabels();
  scene = null;
  sound.src = `${BASE}/sounds/${i}`;
  byId("videos").replaceChildren(...Array.from({ length: videos }, (_, k) => makeVideo(i, k)));
  byId("videos").hidden = !videos;
  byId("faces").hidden = videos > 0;
  draw();
  byId("name").focus({ preventScroll: true });
  try {
    const found = await ask(`/scenes/${i}`);
    if (place !== i) return;
    scene = found;
    byId("notes").textContent = scene.notes.join(" ");
    byId("notes").hidden = !scene.notes.length;
    draw();
  } catch (error) {
    if (place === i) byId("trouble").textContent = `This conversation cannot be played: ${error.message}`;
  }
}

/** A picture without sound: it follows what is heard. */
function makeVideo(i, k) {
  const video = make("video", "", { src: `${BASE}/videos/${i}/${k}`, muted: true, playsInline: true, preload: "auto" });
  video.addEventListener("error", () => { byId("trouble").textContent = "The video does not play in this browser."; });
  return video;
}

function follow() {
  for (const video of byId("videos").children) {
    if (Math.abs(video.currentTime - sound.currentTime) > 0.1) video.currentTime = sound.currentTime;
    if (sound.paused) video.pause();
    else video.play().catch(() => {});
  }
}

for (const event of ["play", "pause", "seeked", "timeupdate"]) sound.addEventListener(event, () => { follow(); draw(); });
sound.addEventListener("play", function step() {
  draw();
  if (!sound.paused) requestAnimationFrame(step);
});

// --- Drawings: what is heard, and what the motion tells of the faces.

function draw() {
  if (!byId("faces").hidden) drawFaces();
  drawVoices();
}

function drawFaces() {
  const canvas = byId("faces"), context = canvas.getContext("2d"), { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  [0, 1].forEach((k) => {
    const person = scene?.people[k], frame = Math.floor(sound.currentTime * (scene?.fps ?? 25));
    const at = (values) => values && values[Math.min(frame, values.length - 1)];
    const loudness = at(person?.loudness) ?? 0;
    drawFace(context, width * (0.25 + 0.5 * k), height * 0.46, height * 0.32, at(person?.head), at(person?.jaw), loudness, COLORS[k]);
    context.fillStyle = COLORS[k];
    context.font = "600 30px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText(`Speaker ${k + 1}${person && !person.head ? " · no motion" : ""}`, width * (0.25 + 0.5 * k), height - 20);
  });
}

/** A head from the front. It is turned by `head`, an axis-angle (x: nose down, y: to the picture's right, z: counterclockwise). */
function drawFace(context, x, y, radius, head, jaw, loudness, color) {
  const [pitch, yaw, roll] = head ?? [0, 0, 0], open = Math.max(jaw ?? 0, 0);
  context.save();
  context.translate(x, y);
  context.rotate(-roll);
  context.globalAlpha = head ? 1 : 0.25;
  const ellipse = (cx, cy, rx, ry, fill) => {
    context.beginPath();
    context.ellipse(cx, cy, rx, ry, 0, 0, 2 * Math.PI);
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    } else context.stroke();
  };
  ellipse(0, 0.1 * radius * open, 0.78 * radius, radius * (1 + 0.1 * open), "#f3e3d3");
  context.lineWidth = 3 + 9 * loudness;  // Who is heard has the thicker outline.
  context.strokeStyle = color;
  ellipse(0, 0.1 * radius * open, 0.78 * radius, radius * (1 + 0.1 * open));
  const dx = 0.75 * radius * Math.sin(yaw), dy = 0.75 * radius * Math.sin(pitch);
  for (const side of [-1, 1]) ellipse(dx + side * 0.3 * radius, dy - 0.22 * radius, 0.07 * radius, 0.09 * radius, "#1c2126");
  context.lineWidth = 5;
  context.strokeStyle = "#8a6a50";
  context.beginPath();
  context.moveTo(dx * 1.1, dy - 0.12 * radius);
  context.lineTo(dx * 1.35, dy * 1.25 + 0.16 * radius);
  context.stroke();
  ellipse(dx, dy + 0.45 * radius, 0.28 * radius, radius * Math.min(0.02 + 0.9 * open, 0.35), "#7a1f2b");
  context.restore();
}

function drawVoices() {
  const canvas = byId("voices"), context = canvas.getContext("2d"), { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  if (!scene) return;
  const lane = height / 2, bars = Math.min(scene.frames, width / 2);
  scene.people.forEach(({ loudness }, k) => {
    context.fillStyle = COLORS[k];
    for (let bar = 0; bar < bars; bar++) {
      const first = Math.floor((bar * scene.frames) / bars), last = Math.max(Math.floor(((bar + 1) * scene.frames) / bars), first + 1);
      const size = Math.max(0.02, ...loudness.slice(first, last)) * (lane - 8);
      context.fillRect((bar * width) / bars, k * lane + (lane - size) / 2, Math.max(width / bars - 0.5, 1), size);
    }
  });
  context.fillStyle = "#1c2126";
  context.fillRect(Math.min((sound.currentTime * scene.fps) / scene.frames, 1) * (width - 3), 0, 3, height);
}

byId("voices").addEventListener("click", ({ offsetX }) => {
  if (scene) sound.currentTime = ((offsetX / byId("voices").clientWidth) * scene.frames) / scene.fps;
});

// --- Answers.

function paint() {
  for (const axis of AXES) for (const radio of document.getElementsByName(axis)) radio.checked = radio.value === draft[axis];
  const isSet = draft.confidence !== null;
  byId("confidence").value = draft.confidence ?? 0.5;
  byId("sure").classList.toggle("set", isSet);
  byId("confidence-value").textContent = isSet ? `${Math.round(100 * draft.confidence)} %` : "–";
  if (isSet) byId("confidence").removeAttribute("aria-valuetext");
  else byId("confidence").setAttribute("aria-valuetext", "not said");
}

function answer(key, value) {
  draft[key] = value;
  paint();
  if (AXES.every((axis) => draft[axis])) save();
  else byId("saved").textContent = "Not saved yet: the other question has no answer.";
}

/** Sends the label as it is now, after those before it. */
function save() {
  const i = place, label = { ...draft };
  byId("saved").textContent = "Saving …";
  saving = saving.then(async () => {
    try {
      await ask("/labels", { conversation: items[i].name, ...label });
      byId("message").textContent = "";
      items[i].label = label;
      nameOption(i);
      countLabels();
      if (place === i) byId("saved").textContent = "Saved.";
    } catch (error) {
      const why = error instanceof Refusal ? error.message : "the program that serves this page does not answer.";
      if (place === i) byId("saved").textContent = "";
      byId("message").textContent = `The label of ${items[i].name} is not saved: ${why}`;
    }
  });
}

for (const axis of AXES) {
  for (const radio of document.getElementsByName(axis)) radio.addEventListener("change", () => answer(axis, radio.value));
}
byId("confidence").addEventListener("change", () => answer("confidence", Number(byId("confidence").value)));

// --- Moving.

const move = (i) => { if (items[i] && i !== place) show(i); };
const moveToOpen = () => {
  const order = items.map((_, k) => (place + 1 + k) % items.length);
  const open = order.find((k) => !items[k].label);
  if (open === undefined) byId("saved").textContent = "All conversations are labelled.";
  else move(open);
};
byId("previous").addEventListener("click", () => move(place - 1));
byId("following").addEventListener("click", () => move(place + 1));
byId("open").addEventListener("click", () => saving.then(moveToOpen));
byId("jump").addEventListener("change", () => move(Number(byId("jump").value)));
byId("again").addEventListener("click", begin);
byId("answers").addEventListener("submit", (event) => event.preventDefault());

document.addEventListener("keydown", (event) => {
  // What has the focus keeps its own keys: lists letters and arrows, sliders and radio buttons arrows, buttons the space bar.
  if (event.ctrlKey || event.altKey || event.metaKey || !items.length || event.target.matches("select")) return;
  const key = event.key.toLowerCase(), isField = event.target.matches("input, audio");
  const seek = (seconds) => { sound.currentTime = Math.max(sound.currentTime + seconds, 0); };
  if (key in KEYS) answer(...KEYS[key]);
  else if (/^[0-9]$/.test(key)) answer("confidence", Number(key) / 10);
  else if (key === "c") answer("confidence", 1);
  else if (key === "j") move(place - 1);
  else if (key === "k") move(place + 1);
  else if (key === "n") saving.then(moveToOpen);
  else if (key === " " && !event.target.matches("input, audio, button")) sound.paused ? sound.play() : sound.pause();
  else if (key === "arrowleft" && !isField) seek(-SKIP);
  else if (key === "arrowright" && !isField) seek(SKIP);
  else return;
  event.preventDefault();
});

begin();
