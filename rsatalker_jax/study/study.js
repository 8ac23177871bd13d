"use strict";
// The participant's page. server.py tells what is next (`state`) and when an answer is on its disk.
const VIEWS = ["loading", "consent", "rating", "done", "failed"];
const RETRY_MS = 3000;
let state = null, draft = null;

function show(view, title) {
  for (const name of VIEWS) byId(name).hidden = name !== view;
  document.title = title;
  // So that the keyboard and screen readers begin at the top of what is new.
  scrollTo(0, 0);
  byId(view).querySelector("h1").focus({ preventScroll: true });
}

async function next() {
  try {
    state = await ask("/state");
  } catch (error) {
    byId("reason").textContent = error instanceof Refusal ? error.message : "The study cannot be reached at the moment.";
    show("failed", "Study");
    return;
  }
  for (const element of document.querySelectorAll(".contact")) {
    element.textContent = state.contact && `Questions? ${state.contact}`;
  }
  if (!state.consented) showConsent();
  else if (state.trial) showTrial();
  else showEnd();
}

// --- First and last page.

function showConsent() {
  byId("consent").querySelector("h1").textContent = state.title;
  byId("paragraphs").replaceChildren(...state.consent.map((text) => make("p", text)));
  byId("number").textContent = `Your participant number is ${state.number}.`;
  show("consent", state.title);
}

byId("consent-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const message = byId("consent-message");
  message.textContent = "";
  if (!byId("agree").checked) {
    message.textContent = "Please tick the box above if you want to take part. If you do not, simply close this page.";
    byId("agree").focus();
    return;
  }
  try {
    await ask("/consent", {});
  } catch (error) {
    message.textContent = error instanceof Refusal ? error.message : "The study cannot be reached at the moment. Please try again.";
    return;
  }
  next();
});

function showEnd() {
  byId("done-number").textContent = `Your participant number was ${state.number}.`;
  show("done", `Thank you · ${state.title}`);
}

// --- Ratings of one video. What is not saved yet survives a reload in this browser.

const draftName = () => `${BASE}/${state.trial.id}`;
const keepDraft = () => keep(() => localStorage.setItem(draftName(), JSON.stringify(draft)));
const dropDraft = () => keep(() => localStorage.removeItem(draftName()));

function newClient() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function showTrial() {
  const { trial } = state;
  const fresh = { client: newClient(), scores: {}, comment: "", watched: false, sending: false };
  draft = { ...fresh, ...JSON.parse(keep(() => localStorage.getItem(draftName())) ?? "{}") };
  byId("place").textContent =
    `Conversation ${trial.conversation} of ${trial.conversations} · Video ${trial.video} of ${trial.videos}`;
  byId("progress").max = state.total;
  byId("progress").value = state.answered;
  byId("count").textContent = `${state.answered} of ${state.total} rated`;
  byId("label").textContent = trial.label;
  const told = [["Scene", trial.title], ["Relation", trial.relation], ["Role", trial.role]].filter(([, text]) => text);
  byId("told").replaceChildren(...told.flatMap(([name, text]) => [make("dt", name), make("dd", text)]));
  byId("told").hidden = !told.length;
  byId("video-message").textContent = byId("message").textContent = "";
  byId("video").src = `${BASE}/videos/${trial.id}`;
  byId("dimensions").replaceChildren(...state.dimensions.map(makeDimension));
  byId("comment").maxLength = state.longest_comment;
  byId("comment").value = draft.comment;
  lock(false);
  show("rating", `${trial.label} · ${trial.conversation} of ${trial.conversations} · ${state.title}`);
  if (draft.sending) send();  // The page was closed before it heard that these are on the disk.
}

function makeDimension({ name, criteria }) {
  const group = make("fieldset");
  group.append(make("legend", name), ...criteria.map(makeScale));
  return group;
}

/** A statement with its slider. Where nobody has moved it, it has no thumb and no number: the middle is no proposal. */
function makeScale({ key, question }) {
  const row = make("div", "", { className: "scale" });
  const slider = make("input", "", { type: "range", id: key, min: state.least, max: state.most, step: 1 });
  const value = make("output", "–", { htmlFor: key });
  const [least, most] = state.ends;
  slider.value = draft.scores[key] ?? (state.least + state.most) / 2;
  slider.setAttribute("aria-describedby", `${key}-ends`);
  const paint = () => {
    const isSet = key in draft.scores;
    row.classList.toggle("set", isSet);
    row.style.setProperty("--part", `${(100 * (slider.value - state.least)) / (state.most - state.least)}%`);
    value.textContent = isSet ? slider.value : "–";
    if (isSet) {
      slider.removeAttribute("aria-valuetext");
      row.classList.remove("missing");
      slider.removeAttribute("aria-invalid");
    } else slider.setAttribute("aria-valuetext", "not rated yet");
  };
  const set = () => {
    draft.scores[key] = Number(slider.value);
    keepDraft();
    paint();
  };
  slider.addEventListener("input", set);
  slider.addEventListener("click", set);  // In the very middle, where nothing moves.
  slider.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    set();
  });
  const ends = make("div", "", { className: "ends", id: `${key}-ends` });
  ends.append(make("span", least), make("span", most));
  row.append(make("label", question, { htmlFor: key }), value, slider, ends);
  paint();
  return row;
}

byId("comment").addEventListener("input", () => {
  draft.comment = byId("comment").value;
  keepDraft();
});

byId("video").addEventListener("ended", () => {
  draft.watched = true;
  byId("message").textContent = "";
  keepDraft();
});

byId("video").addEventListener("error", () => {
  byId("video-message").textContent =
    "This video does not play. Load this page again to try once more; if that does not help, please tell " +
    `${state.contact || "whoever gave you the link"}.`;
});

byId("answers").addEventListener("submit", (event) => {
  event.preventDefault();
  const sliders = [...document.querySelectorAll("#dimensions input")];
  const missing = sliders.filter(({ id }) => !(id in draft.scores));
  for (const slider of missing) {
    slider.closest(".scale").classList.add("missing");
    slider.setAttribute("aria-invalid", "true");
  }
  if (!draft.watched) {
    byId("message").textContent = "Please watch the video to its end first.";
    byId("video").focus();
  } else if (missing.length) {
    byId("message").textContent = missing.length > 1
      ? `${missing.length} statements have no rating yet. Move each slider to where it fits.`
      : "One statement has no rating yet. Move its slider to where it fits.";
    missing[0].focus();
  } else send();
});

function lock(isLocked) {
  for (const element of byId("answers").querySelectorAll("input, textarea, button")) element.disabled = isLocked;
}

/** Sends the draft until the server has it. Nothing of it may change meanwhile: the first copy may have arrived. */
async function send() {
  draft.sending = true;
  keepDraft();
  lock(true);
  const { client, scores, comment } = draft, { id } = state.trial;
  for (;;) {
    try {
      await ask("/answers", { video: id, client, scores, comment });
      break;
    } catch (error) {
      if (error instanceof Refusal && error.status === 409) {  // Answered elsewhere, as in another tab: go on from there.
        dropDraft();
        await next();
        byId("message").textContent = "These ratings were not saved: this video had been rated elsewhere with the same link.";
        return;
      }
      if (error instanceof Refusal && error.status < 500) {
        draft.sending = false;
        keepDraft();
        lock(false);
        byId("message").textContent = `Not saved: ${error.message}`;
        return;
      }
      byId("message").textContent = "Not saved yet: the study cannot be reached. This page keeps your ratings and tries again.";
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  dropDraft();
  byId("announcement").textContent = "Saved.";
  next();
}

byId("again").addEventListener("click", next);
next();
