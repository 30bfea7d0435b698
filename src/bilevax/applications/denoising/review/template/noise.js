// The noise matrix: a table with shading where the classes are few, else squares. A cell filters by its pair of labels.

const NUMBERED = 10; // classes up to which each cell shows its number
const DRAWN = 200;

function drawNoise() {
  const matrix = data.matrix, k = data.classes.length;
  if (!matrix || k > DRAWN) return;
  const section = $("noise");
  section.hidden = false;
  section.append(
    el("h2", {}, "Noise matrix", el("small", {}, "true ↓ given →, percent")),
    k <= NUMBERED ? noiseTable(matrix) : noisePicture(matrix),
  );
}

const noiseTitle = (matrix, j, g) =>
  `${visible(data.classes[j])} given as ${visible(data.classes[g])}: ${(100 * matrix[j][g]).toFixed(1)}%`;

function showPair(j, g) {
  $("given").value = g;
  $("suggested").value = j;
  refilterAll();
}

// Off the diagonal the shades are spread over the values there, which are small.
function shades(matrix) {
  const most = Math.max(0.02, ...matrix.map((row, j) => Math.max(...row.filter((_, g) => g !== j))));
  return (j, g) => (j === g ? 0.08 + 0.25 * matrix[j][g] : 0.5 * Math.sqrt(Math.max(0, matrix[j][g]) / most));
}

function noiseTable(matrix) {
  const shade = shades(matrix);
  const head = el("tr", {}, el("td", { class: "corner" }));
  for (const name of data.classes) head.append(el("th", { scope: "col", title: visible(name) }, bdi(name)));
  const body = el("tbody", {});
  for (const [j, name] of data.classes.entries()) {
    const row = el("tr", {}, el("th", { scope: "row", title: visible(name) }, bdi(name)));
    for (const g of data.classes.keys()) {
      const value = matrix[j][g], text = value < 0.005 ? "·" : String(Math.round(100 * value));
      const cell = el("td", { title: noiseTitle(matrix, j, g), class: j === g ? "right" : "wrong" });
      cell.style.setProperty("--shade", 100 * shade(j, g) + "%");
      cell.append(j === g ? text : el("button", { type: "button", "aria-label": `Show given ${visible(data.classes[g])}, suggested ${visible(name)}`, onclick: () => showPair(j, g) }, text));
      row.append(cell);
    }
    body.append(row);
  }
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body));
}

function noisePicture(matrix) {
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const k = data.classes.length;
  const picture = svg("svg", { viewBox: `0 0 ${k} ${k}`, role: "img", "aria-label": "Noise matrix: true classes down, given labels across" });
  const shade = shades(matrix);
  for (const j of matrix.keys()) {
    for (const g of matrix.keys()) {
      if (matrix[j][g] < 0.005) continue;
      const square = svg("rect", { x: g, y: j, width: 1, height: 1, class: j === g ? "right" : "wrong", "fill-opacity": shade(j, g) });
      square.append(svg("title", {}));
      square.firstChild.textContent = noiseTitle(matrix, j, g);
      if (j !== g) square.addEventListener("click", () => showPair(j, g));
      picture.append(square);
    }
  }
  return picture;
}
