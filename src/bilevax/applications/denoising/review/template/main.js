// What buttons and keys do.

function refresh() {
  mark();
  drawCurrent();
  const tally = { keep: 0, correct: 0, drop: 0 };
  for (const { word } of decisions.values()) tally[word]++;
  const more = elsewhere.size ? ` +${count(elsewhere.size)} not listed` : "";
  $("decided").replaceChildren(`${count(decisions.size)} of ${count(total)}`, el("small", {}, more));
  $("tally").textContent = `${count(tally.keep)} · ${count(tally.correct)} · ${count(tally.drop)}`;
  $("shown").textContent = `${count(shown.length)} shown`;
  $("undo").disabled = !past.length;
  $("export").disabled = decisions.size + elsewhere.size === 0;
  $("clear").hidden = !isFiltered();
  for (const button of document.querySelectorAll("[data-all]")) button.disabled = !shown.length;
}

const isFiltered = () =>
  $("search").value !== "" || $("given").value !== "" || $("suggested").value !== "" || $("state").value !== "all";

function refilterAll() {
  refilter();
  scrollToCurrent();
  draw();
  refresh();
}

function clearFilters() {
  for (const id of ["search", "given", "suggested"]) $(id).value = "";
  $("state").value = "all";
  refilterAll();
  list.focus();
}

function go(n) {
  if (!shown.length) return;
  at = Math.max(0, Math.min(n, shown.length - 1));
  scrollToCurrent();
  draw();
  drawCurrent();
}

const several = (n) => `${count(n)} ${n === 1 ? "decision" : "decisions"}`;
const named = ({ word, label }) => (word === "correct" ? `corrected to ${visible(data.classes[label])}` : word === "keep" ? "kept" : "dropped");

// After a change: rows may leave the list where it shows one kind of decision only.
function changed() {
  if ($("state").value === "all") refresh();
  else refilterAll();
}

// Decide about the current suspect, and go to the next.
function decide(word, label) {
  const i = current();
  if (i === undefined) return;
  const next = decision(i, word, label);
  change([[i, next]]);
  if (!stays(i)) refilterAll();
  else {
    at = Math.min(at + 1, shown.length - 1);
    scrollToCurrent();
    draw();
    refresh();
  }
  say(`Row ${data.row[i]} ${named(next)}.`);
}

function stays(i) {
  const state = $("state").value, word = decisions.get(i)?.word;
  return state === "all" || (state === "open" ? !word : word === state);
}

// Decide about one suspect by the mouse; the place in the list stays.
function decideAt(i, word) {
  at = shown.indexOf(i);
  const next = decision(i, word);
  change([[i, next]]);
  changed();
  say(`Row ${data.row[i]} ${named(next)}.`);
}

function decideAll(word) {
  const changes = change(shown.map((i) => [i, decision(i, word)]));
  changed();
  say(`${several(changes)}. Undo takes them back.`);
}

function takeBack() {
  const step = undo();
  if (!step) return;
  changed();
  const listed = step.find(([map]) => map === decisions);
  const place = listed ? shown.indexOf(listed[1]) : -1;
  if (place >= 0) go(place);
  refresh();
  say(`${several(step.length)} undone.`);
}

function download() {
  const url = URL.createObjectURL(new Blob([exported()], { type: "text/csv;charset=utf-8" }));
  const link = el("a", { href: url, download: "decisions.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  unsaved = false;
  say(`Exported ${several(decisions.size + elsewhere.size)} as decisions.csv.`);
}

async function load(file) {
  const found = imported(await file.text());
  if (typeof found === "string") return say(found, true);
  const [pairs, unlisted] = found;
  const changes = change(pairs, unlisted);
  changed();
  const more = unlisted.length ? ` ${count(unlisted.length)} on rows that are not listed here, kept for the export.` : "";
  say(`Imported ${several(pairs.length + unlisted.length)}; ${count(changes)} differ from those here.${more}`);
}

function onKey(event) {
  if (event.ctrlKey && event.key === "z" && !typing(event.target)) {
    takeBack();
    return event.preventDefault();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === "Escape") {
    if (isFiltered() && event.target.id !== "other") clearFilters();
    list.focus();
    return;
  }
  if (typing(event.target)) {
    if (event.target === $("search") && ["Enter", "ArrowDown"].includes(event.key)) {
      list.focus();
      event.preventDefault();
    }
    return;
  }
  const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
  const moves = {
    ArrowUp: at - across(),
    ArrowDown: at + across(),
    ArrowLeft: at - 1,
    ArrowRight: at + 1,
    PageUp: at - page * across(),
    PageDown: at + page * across(),
    Home: 0,
    End: shown.length - 1,
  };
  const scrolls = event.target.closest?.(".whole"); // a long text is scrolled by the same keys
  const words = { k: "keep", c: "correct", d: "drop" };
  if (event.key in moves && !scrolls) go(moves[event.key]);
  else if (event.key in words) decide(words[event.key]);
  else if (/^\d$/.test(event.key) && classOfDigit(event.key) !== undefined) decide("correct", classOfDigit(event.key));
  else if (event.key === "u") takeBack();
  else if (event.key === "/") $("search").focus();
  else if (event.key === "o" && $("other")) $("other").focus();
  else if (event.key === "?") $("help").showModal();
  else return;
  event.preventDefault();
}

const typing = (node) => ["INPUT", "SELECT", "TEXTAREA"].includes(node.tagName);

function options(id, of, any) {
  const tally = new Map();
  for (const k of data[of]) tally.set(k, (tally.get(k) ?? 0) + 1);
  $(id).append(el("option", { value: "" }, any));
  if (data.quantity) return;
  for (const [k, name] of data.classes.entries()) {
    $(id).append(el("option", { value: k }, `${visible(name)} (${count(tally.get(k) ?? 0)})`));
  }
}

// Light or dark as the system says, until the switch is used.
function drawTheme() {
  const chosen = recall("bilevax-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
  return dark;
}

function switchTheme() {
  const next = drawTheme() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  if (remember("bilevax-theme", next)) drawTheme();
}

options("given", "given", "any");
options("suggested", "suggested", "any");
if (data.classes.length > FEW && !data.quantity) $("classes").append(...data.classes.map((name) => el("option", { value: name })));
drawTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTheme);
$("theme").addEventListener("click", switchTheme);
$("undo").addEventListener("click", takeBack);
$("export").addEventListener("click", download);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  if ($("file").files.length) await load($("file").files[0]);
  $("file").value = "";
});
$("keys").addEventListener("click", () => $("help").showModal());
$("clear").addEventListener("click", clearFilters);
$("clear2").addEventListener("click", clearFilters);
let byMouse = false; // then the keys decide again once a filter is chosen
addEventListener("pointerdown", () => (byMouse = true), true);
addEventListener("keydown", () => (byMouse = false), true);
for (const id of ["given", "suggested", "state", "sort"]) {
  $(id).addEventListener("change", () => {
    refilterAll();
    if (byMouse) list.focus();
  });
}
let waiting = 0;
$("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(refilterAll, 100);
});
for (const button of document.querySelectorAll("[data-all]")) {
  button.addEventListener("click", () => decideAll(button.dataset.all));
}
list.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
list.addEventListener("click", (event) => {
  const row = event.target.closest(".row"), button = event.target.closest("button[data-word]");
  if (!row) return;
  const i = Number(row.dataset.suspect);
  if (button) decideAt(i, button.dataset.word);
  else go(shown.indexOf(i));
});
addEventListener("resize", () => requestAnimationFrame(rebuild));
addEventListener("keydown", onKey);
addEventListener("storage", (event) => {
  if (event.key !== STORE) return;
  restore(); // another tab has decided
  past.length = 0;
  changed();
});
addEventListener("beforeunload", (event) => unsaved && event.preventDefault());

document.body.classList.toggle("pictures", pictures.length > 0);
if (pictures.length) {
  const first = new Image();
  first.onload = () => document.body.classList.toggle("pixels", Math.max(first.width, first.height) < 48);
  first.src = pictures[0].p;
}
restore();
drawNoise();
refilterAll();
list.focus({ preventScroll: true });
if (!remember("bilevax-probe", "1")) say("This browser keeps nothing for this page: export the decisions before closing it.", true);
