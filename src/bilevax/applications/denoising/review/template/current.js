// The current suspect, with all of its content and a button for each decision.

const byName = data.classes.some((name) => /^\d$/.test(name)); // then a digit is the name of a class, else its place

function classOfDigit(digit) {
  if (data.quantity) return undefined;
  if (byName) return classOf.get(digit);
  const k = (Number(digit) + 9) % 10;
  return k < data.classes.length ? k : undefined;
}

function digitOf(k) {
  if (byName) return /^\d$/.test(data.classes[k]) ? data.classes[k] : null;
  return k < 10 ? String((k + 1) % 10) : null;
}

const FEW = 12; // classes that have a button each; of more, one is typed or chosen from a list

function drawCurrent() {
  const i = current(), panel = $("current");
  if (i === undefined) {
    panel.replaceChildren(el("p", { class: "quiet" }, "No suspect is shown."));
    return;
  }
  const { word, label } = decisions.get(i) ?? {};
  const given = data.classes[data.given[i]], suggested = data.classes[data.suggested[i]];
  const where = [`row ${data.row[i]}`, data.line[i] === null ? null : `line ${data.line[i]}`].filter(Boolean).join(", ");
  const choice = (name, key, pressed, ...text) =>
    el("button", { type: "button", "data-word": name, "data-key": name, "aria-pressed": pressed, onclick: () => decide(name) }, el("span", {}, ...text), el("kbd", {}, key));
  const parts = [
    el("h2", {}, `${count(at + 1)} of ${count(shown.length)}`, el("small", {}, where)),
    data.id[i] === null ? null : el("p", { class: "id" }, bdi(data.id[i])),
    el("div", { class: "whole", tabindex: 0, "data-key": "whole", role: "group", "aria-label": "Content", dir: "auto" }, ...whole(i)),
    el("p", { class: "figure" }, `Probability wrong ${percent(data.probability[i])}`, bar(data.probability[i])),
    el(
      "div",
      { class: "choices", role: "group", "aria-label": "Decision" },
      choice("keep", "k", word === "keep", "Keep ", bdi(given)),
      data.given[i] === data.suggested[i] ? null : choice("correct", "c", word === "correct" && label === data.suggested[i], "Correct to ", bdi(suggested)),
      choice("drop", "d", word === "drop", "Drop the sample"),
    ),
    data.classes.length > 2 || data.quantity ? others(i, label) : null,
  ];
  const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.key ?? "" : null;
  panel.replaceChildren(...parts.filter((part) => part !== null));
  if (focused !== null) (panel.querySelector(`[data-key="${focused}"]`) ?? list).focus();
}

function whole(i) {
  const content = data.content[i];
  if (typeof content === "string") return [el("div", { class: "text" }, visible(content))];
  if (!Array.isArray(content)) return [el("img", { src: content.p, alt: `Picture of row ${data.row[i]}` })];
  const rows = data.columns[content[0]].map((name, n) =>
    el("tr", {}, el("th", { scope: "row" }, bdi(name)), el("td", { dir: "auto" }, visible(content[1][n]))),
  );
  return [el("table", {}, el("tbody", {}, ...rows))];
}

function others(i, label) {
  if (data.classes.length > FEW || data.quantity) {
    const what = data.quantity ? "number" : "class", list_ = data.quantity ? null : "classes";
    const name = el("input", { id: "other", list: list_, placeholder: `Another ${what}  o`, "aria-label": `Another ${what}`, spellcheck: "false" });
    name.addEventListener("change", () => {
      const k = placeOfLabel(data.quantity ? name.value.trim() : name.value);
      if (k === undefined) return name.value && say(`“${visible(name.value)}” is no ${what}.`, true);
      list.focus();
      decide("correct", k);
    });
    return el("div", { class: "others" }, name);
  }
  const buttons = data.classes.map((name, k) =>
    el(
      "button",
      { type: "button", "data-key": k, "aria-pressed": k === label, "aria-label": `Correct to ${visible(name)}`, onclick: () => decide("correct", k) },
      bdi(name),
      [null, name].includes(digitOf(k)) ? null : el("kbd", {}, digitOf(k)),
    ),
  );
  return el("div", { class: "others", role: "group", "aria-label": "Another class" }, ...buttons);
}
