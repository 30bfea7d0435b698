// The list: which suspects are shown, in which order, and the few rows of them that are in sight.

const list = $("list"), space = $("space");
let shown = [...data.row.keys()];
let at = 0; // the current suspect is shown[at]
let made = new Map(); // suspect -> its element
const current = () => shown[at];

const searched = []; // of each suspect its text in lower case, made when first needed
function haystack(i) {
  if (searched[i] === undefined) {
    const content = data.content[i];
    const text = typeof content === "string" ? content : Array.isArray(content) ? content[1].join("\n") : "";
    const labels = [data.classes[data.given[i]], data.classes[data.suggested[i]]];
    const place = [`row ${data.row[i]}`, data.line[i] === null ? "" : `line ${data.line[i]}`, data.id[i] ?? ""];
    searched[i] = [...place, ...labels, text].join("\n").toLowerCase();
  }
  return searched[i];
}

function choose() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const given = $("given").value, suggested = $("suggested").value, state = $("state").value, sort = $("sort").value;
  const found = [];
  for (let i = 0; i < total; i++) {
    if (given !== "" && data.given[i] !== Number(given)) continue;
    if (suggested !== "" && data.suggested[i] !== Number(suggested)) continue;
    const word = decisions.get(i)?.word;
    if (state === "open" ? word : state !== "all" && word !== state) continue;
    if (words.length && !words.every((word) => haystack(i).includes(word))) continue;
    found.push(i);
  }
  const by = { row: data.row, given: data.given, suggested: data.suggested, probability: data.probability.map((p) => -p) };
  if (by[sort]) found.sort((a, b) => by[sort][a] - by[sort][b] || a - b);
  return found;
}

// Choose anew what is shown; the current suspect stays current where it is still shown.
function refilter() {
  const before = current();
  shown = choose();
  const still = shown.indexOf(before);
  at = still >= 0 ? still : Math.max(0, Math.min(at, shown.length - 1));
  rebuild();
}

function rebuild() {
  for (const node of made.values()) node.remove();
  made = new Map();
  space.style.height = Math.ceil(shown.length / across()) * rowHeight() + "px";
  list.setAttribute("aria-rowcount", shown.length);
  $("nothing").hidden = shown.length > 0;
  draw();
}

function rowHeight() {
  return parseFloat(getComputedStyle(list).getPropertyValue("--row"));
}

// Pictures stand side by side, as tiles; texts and rows of a table do not.
const pictures = data.content.filter((content) => content.p);
const TILE = 148;
const across = () => (pictures.length ? Math.max(1, Math.floor(list.clientWidth / TILE)) : 1);

// Make the rows in sight, and remove those that are far from it.
function draw() {
  const height = rowHeight(), wide = across(), width = list.clientWidth / wide;
  const first = wide * Math.max(0, Math.floor(list.scrollTop / height) - 6);
  const last = Math.min(shown.length, wide * (Math.ceil((list.scrollTop + list.clientHeight) / height) + 6));
  const wanted = new Map();
  for (let n = first; n < last; n++) wanted.set(shown[n], n);
  for (const [i, node] of made) {
    if (!wanted.has(i)) {
      node.remove();
      made.delete(i);
    }
  }
  for (const [i, n] of wanted) {
    if (made.has(i)) continue;
    const node = listRow(i, n);
    node.style.transform = `translate(${(n % wide) * width}px, ${Math.floor(n / wide) * height}px)`;
    node.style.width = width + "px";
    made.set(i, node);
    space.append(node);
  }
  mark();
}

// One row of the list.
function listRow(i, n) {
  const word = (name, text, sign) => {
    const label = `${text}: row ${data.row[i]}`;
    return el("button", { type: "button", tabindex: -1, "data-word": name, "aria-label": label, title: text }, pictures.length ? sign : text);
  };
  const where = data.id[i] ?? (data.line[i] === null ? null : `line ${data.line[i]}`);
  return el(
    "div",
    { role: "row", class: "row", id: `suspect-${i}`, "aria-rowindex": n + 1, "data-suspect": i },
    el(
      "div",
      { role: "gridcell", class: "place" },
      el("b", {}, String(data.row[i])),
      where === null ? null : el("small", { title: visible(where) }, bdi(where)),
    ),
    el("div", { role: "gridcell", class: "content", dir: "auto" }, ...preview(i)),
    el("div", { role: "gridcell", class: "labels" }),
    el("div", { role: "gridcell", class: "wrong" }, percent(data.probability[i]), bar(data.probability[i])),
    el("div", { role: "gridcell", class: "words" }, word("keep", "Keep", "✓"), word("correct", "Correct", "→"), word("drop", "Drop", "✕")),
  );
}

const PREVIEW = 300; // characters of a text, or of the cells of a row

function preview(i) {
  const content = data.content[i];
  if (typeof content === "string") return [visible(content.slice(0, PREVIEW))];
  if (!Array.isArray(content)) return [el("img", { src: content.p, alt: `Picture of row ${data.row[i]}` })];
  const [names, cells] = [data.columns[content[0]], content[1]];
  const parts = [];
  for (let n = 0, length = 0; n < names.length && length < PREVIEW; n++) {
    if (cells[n] === "") continue;
    const [name, cell] = [visible(names[n].slice(0, 60)), visible(cells[n].slice(0, 120))];
    length += name.length + cell.length + 3;
    parts.push(el("span", { class: "pair" }, el("i", {}, name), " ", el("bdi", {}, cell)), " ");
  }
  return parts;
}

// The given label and the one that it becomes, or would become.
function labels(i) {
  const { word, label } = decisions.get(i) ?? {};
  const given = el(word === "correct" || word === "drop" ? "s" : "span", { class: "label" }, bdi(data.classes[data.given[i]]));
  if (word === "drop") return [given, el("span", { class: "then" }, "dropped")];
  if (word === "keep") return [given, el("span", { class: "then" }, "kept")];
  const next = label ?? data.suggested[i];
  return [given, " ", el("span", { class: word ? "next then" : "next" }, "→ ", el("b", {}, bdi(data.classes[next])))];
}

// Decisions and the current row, on the rows that are made.
function mark() {
  for (const [i, node] of made) {
    const { word = "", label } = decisions.get(i) ?? {};
    const state = `${word} ${label} ${i === current()}`;
    if (node.state === state) continue;
    node.state = state;
    node.classList.toggle("current", i === current());
    node.setAttribute("aria-selected", i === current());
    node.dataset.decision = word;
    node.querySelector(".labels").replaceChildren(...labels(i));
    for (const button of node.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.dataset.word === word);
    }
  }
  if (made.has(current())) list.setAttribute("aria-activedescendant", made.get(current()).id);
  else list.removeAttribute("aria-activedescendant");
}

function scrollToCurrent() {
  const height = rowHeight(), top = Math.floor(at / across()) * height;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
}
