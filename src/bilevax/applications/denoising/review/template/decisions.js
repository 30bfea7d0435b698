// The decisions: their changes, undo, storage in the browser, export and import.

const data = JSON.parse($("data").textContent);
const total = data.row.length;
const classOf = new Map(data.classes.map((name, k) => [name, k]));
const placeOf = new Map(data.row.map((row, i) => [row, i]));

const decisions = new Map(); // suspect -> { word: "keep" | "correct" | "drop", label: class or null }
const past = []; // of each step: [[suspect, its decision before], ...]
const STORE = "bilevax-review:" + data.digest;
let unsaved = false; // there is no storage, and decisions that were not exported

const same = (a, b) => (!a && !b) || (a && b && a.word === b.word && a.label === b.label);

function decision(i, word, label) {
  if (word === "drop") return { word, label: null };
  const chosen = word === "keep" ? data.given[i] : label ?? data.suggested[i];
  return { word: chosen === data.given[i] ? "keep" : "correct", label: chosen };
}

// Change decisions, [[suspect, decision], ...], as one step to undo. Returns how many changed.
function change(pairs) {
  const step = [];
  for (const [i, next] of pairs) {
    const before = decisions.get(i);
    if (same(before, next)) continue;
    step.push([i, before]);
    put(i, next);
  }
  if (step.length) {
    past.push(step);
    save();
  }
  return step.length;
}

function undo() {
  const step = past.pop();
  if (!step) return null;
  for (const [i, before] of step) put(i, before);
  save();
  return step;
}

function put(i, next) {
  if (next) decisions.set(i, next);
  else decisions.delete(i);
}

function save() {
  const kept = [...decisions].map(([i, d]) => [
    data.row[i],
    data.classes[data.given[i]],
    d.word,
    d.label === null ? null : data.classes[d.label],
  ]);
  unsaved = !remember(STORE, JSON.stringify(kept)) && decisions.size > 0;
}

// The decisions kept in this browser for data of this digest. What no longer fits, such as a given label, is left out.
function restore() {
  decisions.clear();
  let kept = [];
  try {
    kept = JSON.parse(recall(STORE) || "[]");
  } catch {
    return;
  }
  if (!Array.isArray(kept)) return;
  for (const item of kept) {
    const [row, given, word, label] = Array.isArray(item) ? item : [];
    const i = placeOf.get(row);
    if (i === undefined || data.classes[data.given[i]] !== given) continue;
    if (word === "drop") decisions.set(i, decision(i, "drop"));
    else if (["keep", "correct"].includes(word) && classOf.has(label)) {
      decisions.set(i, decision(i, "correct", classOf.get(label)));
    }
  }
}

function exported() {
  const lines = [csvLine(COLUMNS)];
  for (const i of [...decisions.keys()].sort((a, b) => data.row[a] - data.row[b])) {
    const { word, label } = decisions.get(i);
    const name = label === null ? "" : data.classes[label];
    lines.push(csvLine([data.row[i], data.line[i], data.id[i], data.classes[data.given[i]], word, name, data.digest]));
  }
  return lines.join("\n") + "\n";
}

// The decisions of an exported file as [[suspect, decision], ...], or a sentence that says why not.
function imported(text) {
  const [header, ...records] = csvRecords(text);
  if (!header) return "This is no CSV file of decisions: it has no column “decision”. Nothing was imported.";
  const names = header.map((cell) => cell.trim());
  const missing = COLUMNS.filter((name) => name !== "line" && name !== "id" && !names.includes(name));
  if (missing.length) return `The file lacks the column ${missing.join(", ")}. Nothing was imported.`;
  const pairs = [];
  const seen = new Set();
  for (const [n, record] of records.entries()) {
    const cell = (name) => unguarded(record[names.indexOf(name)] ?? "");
    const where = `Record ${n + 1}`;
    const word = cell("decision").trim();
    const i = /^\s*\d+\s*$/.test(cell("row")) ? placeOf.get(Number(cell("row"))) : undefined;
    if (cell("data").trim() !== data.digest) {
      return `${where} is about other data (${cell("data") || "no digest"}; here ${data.digest}). Nothing was imported.`;
    }
    if (i === undefined) return `${where}: row ${cell("row")} is not on this page. Nothing was imported.`;
    if (seen.has(i)) return `${where}: row ${cell("row")} occurs twice. Nothing was imported.`;
    seen.add(i);
    if (cell("given_label") !== data.classes[data.given[i]]) {
      return `${where}: row ${cell("row")} has the given label “${data.classes[data.given[i]]}” here. Nothing was imported.`;
    }
    if (!["keep", "correct", "drop"].includes(word)) {
      return `${where}: “${word}” is no decision (keep, correct, drop). Nothing was imported.`;
    }
    if (word === "correct" && !classOf.has(cell("label"))) {
      return `${where}: “${cell("label")}” is no class. Nothing was imported.`;
    }
    pairs.push([i, decision(i, word, word === "correct" ? classOf.get(cell("label")) : null)]);
  }
  return pairs;
}
