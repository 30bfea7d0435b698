// The decisions: their changes, undo, storage in the browser, export and import.

const data = JSON.parse($("data").textContent);
const total = data.row.length;
const classOf = new Map(data.classes.map((name, k) => [name, k]));
// The place of a label among the classes; a number that is new becomes one, where labels are quantities.
function placeOfLabel(name) {
  if (data.quantity && !classOf.has(name) && QUANTITY.test(name)) classOf.set(name, data.classes.push(name) - 1);
  return classOf.get(name);
}
const QUANTITY = /^[+-]?[\d.,]*\d[\d.,]*([eE][+-]?\d+)?%?$/;

const placeOf = new Map(data.row.map((row, i) => [row, i]));

const decisions = new Map(); // suspect -> { word: "keep" | "correct" | "drop", label: class or null }
const elsewhere = new Map(); // row that this page does not list -> { row, line, id, given, word, label }, labels by name
const past = []; // of each step: [[map, key, value before], ...]
const STORE = "bilevax-review:" + data.digest;
let unsaved = false; // there is no storage, and decisions that were not exported

const WORDS = ["keep", "correct", "drop"];
const same = (a, b) => (!a && !b) || (a && b && a.word === b.word && a.label === b.label);

function decision(i, word, label) {
  if (word === "drop") return { word, label: null };
  const chosen = word === "keep" ? data.given[i] : label ?? data.suggested[i];
  return { word: chosen === data.given[i] ? "keep" : "correct", label: chosen };
}

// Change decisions, [[suspect, decision], ...] and those on rows not listed, as one step to undo. How many changed.
function change(pairs, unlisted = []) {
  const step = [];
  const change = (map, key, next) => {
    const before = map.get(key);
    if (same(before, next)) return;
    step.push([map, key, before]);
    put(map, key, next);
  };
  for (const [i, next] of pairs) change(decisions, i, next);
  for (const item of unlisted) change(elsewhere, item.row, item);
  if (step.length) {
    past.push(step);
    save();
  }
  return step.length;
}

function undo() {
  const step = past.pop();
  if (!step) return null;
  for (const [map, key, before] of step) put(map, key, before);
  save();
  return step;
}

function put(map, key, next) {
  if (next) map.set(key, next);
  else map.delete(key);
}

// All decisions by names, in the order of the rows.
function items() {
  const listed = [...decisions].map(([i, { word, label }]) => ({
    row: data.row[i],
    line: data.line[i],
    id: data.id[i],
    given: data.classes[data.given[i]],
    word,
    label: label === null ? "" : data.classes[label],
  }));
  return [...listed, ...elsewhere.values()].sort((a, b) => a.row - b.row);
}

function save() {
  unsaved = !remember(STORE, JSON.stringify(items())) && decisions.size + elsewhere.size > 0;
}

// Take a decision by names as one on this page, or elsewhere; a sentence where it does not fit.
function sorted(item, pairs, unlisted) {
  const i = placeOf.get(item.row);
  if (!WORDS.includes(item.word)) return `“${item.word}” is no decision (keep, correct, drop)`;
  const none = data.quantity ? "no number" : "no class";
  if (item.word === "correct" && placeOfLabel(item.label) === undefined) return `“${item.label}” is ${none}`;
  const wanted = i === undefined ? null : data.classes[data.given[i]];
  if (wanted !== null && item.given !== wanted) return `row ${item.row} has the given label “${wanted}” here`;
  if (placeOfLabel(item.given) === undefined) return `“${item.given}” is ${none}`;
  if (i === undefined) unlisted.push(item);
  else pairs.push([i, decision(i, item.word, classOf.get(item.label))]);
  return null;
}

// The decisions kept in this browser for data of this digest. What no longer fits, such as a given label, is left out.
function restore() {
  let kept = [];
  try {
    kept = JSON.parse(recall(STORE) || "[]");
  } catch {
    // damaged
  }
  const pairs = [], unlisted = [];
  if (Array.isArray(kept)) kept.forEach((item) => item && sorted(item, pairs, unlisted));
  decisions.clear();
  elsewhere.clear();
  for (const [i, next] of pairs) decisions.set(i, next);
  for (const item of unlisted) elsewhere.set(item.row, item);
}

function exported() {
  const lines = items().map((d) => csvLine([d.row, d.line, d.id, d.given, d.word, d.label, data.digest]));
  return [csvLine(COLUMNS), ...lines].join("\n") + "\n";
}

// The decisions of an exported file as [pairs, unlisted], or a sentence that says why not.
function imported(text) {
  const [header, ...records] = csvRecords(text);
  if (!header) return "This is no CSV file of decisions: it has no column “decision”. Nothing was imported.";
  const names = header.map((cell) => cell.trim());
  const missing = COLUMNS.filter((name) => name !== "line" && name !== "id" && !names.includes(name));
  if (missing.length) return `The file lacks the column ${missing.join(", ")}. Nothing was imported.`;
  const pairs = [], unlisted = [], seen = new Set();
  for (const [n, record] of records.entries()) {
    const cell = (name) => unguarded(record[names.indexOf(name)] ?? "");
    const number = (name) => (/^\s*\d+(\.0+)?\s*$/.test(cell(name)) ? Number(cell(name)) : null);
    const word = cell("decision").trim().toLowerCase();
    const item = { row: number("row"), line: number("line"), id: cell("id") || null, given: cell("given_label"), word, label: cell("label") };
    let fault = null;
    if (cell("data").trim() !== data.digest) fault = `it is about other data (${cell("data") || "no digest"}; here ${data.digest})`;
    else if (item.row === null) fault = `“${cell("row")}” is no row`;
    else if (seen.has(item.row)) fault = `row ${item.row} occurs twice`;
    else fault = sorted(item, pairs, unlisted);
    if (fault) return `Record ${n + 1}: ${visible(fault)}. Nothing was imported.`;
    seen.add(item.row);
  }
  return [pairs, unlisted];
}
