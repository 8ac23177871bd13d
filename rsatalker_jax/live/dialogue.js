"use strict";
// What is said, as text, and where it goes.

/** The words of a conversation, line by line. */
class Transcript {
  constructor(list) {
    this.list = list;
  }

  /** What A has said in a turn so far: the turn's line is written anew. */
  hear(turn, text) {
    const last = this.list.lastElementChild;
    if (last?.dataset.turn === String(turn)) last.lastChild.textContent = text;
    else this.add("you", "You", text).dataset.turn = turn;
  }

  say(text) {
    const last = this.list.lastElementChild;
    if (last?.className === "face") last.lastChild.textContent += ` ${text}`;
    else this.add("face", "The face", text);
  }

  cut() {
    const lines = this.list.querySelectorAll(".face");
    if (lines.length) lines[lines.length - 1].classList.add("cut");
  }

  /** From here on it is another conversation, of which this one is not known. */
  part() {
    this.list.lastElementChild?.classList.add("over");
    for (const line of this.list.children) delete line.dataset.turn;
  }

  add(name, who, text) {
    const line = make("li", "", { className: name });
    line.append(make("b", `${who}: `), make("span", text));
    this.list.append(line);
    while (this.list.children.length > 200) this.list.firstElementChild.remove();
    this.list.scrollTop = this.list.scrollHeight;
    return line;
  }
}

/** Plain sentences on what becomes of one's words, and whether they go to another machine. */
function describeWay({ answerer, understands }) {
  const way = [];
  if (understands) way.push("That program itself turns your sound into words.");
  const away = Boolean(answerer && !answerer.local);
  if (answerer?.name === "eliza" && !answerer.where) {
    way.push("Who answers is ELIZA, a toy of 1966 inside that program: it turns your own words round and understands none of them.");
  } else if (answerer) {
    const what = understands ? "What you say and write" : "What you write";
    way.push(away
      ? `${what} goes, as text, to another machine: ${answerer.where}, where the model ${answerer.name} answers. The relation goes there, too.`
      : `${what} goes, as text, to ${answerer.where} on the same machine, where the model ${answerer.name} answers.`);
  }
  return { way: way.join(" "), away };
}
