// CSV files of decisions. Text that a spreadsheet would run as a formula gets a single quote before it, as in all CSV
// files of bilevax.

const COLUMNS = ["row", "line", "id", "given_label", "decision", "label", "data"];
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;

const guarded = (text) => (/^'*[=+\-@\t\r]/.test(text) && !NUMBER.test(text) ? "'" + text : text);
const unguarded = (text) => text.replace(/^'(?='*[=+\-@\t\r])/, "");

function csvLine(cells) {
  return cells
    .map((cell) => {
      const text = guarded(cell === null ? "" : String(cell));
      return /[",;\r\n\t]|^\s|\s$/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    })
    .join(",");
}

// Records of a CSV text as lists of cells; the separator is the one that splits off a column "decision".
function csvRecords(text) {
  text = text.replace(/^\ufeff/, "");
  for (const separator of [",", ";", "\t"]) {
    const records = split(text, separator);
    if (records.length && records[0].map((cell) => cell.trim()).includes("decision")) return records;
  }
  return [];
}

function split(text, separator) {
  const records = [];
  let record = [], cell = "", quoted = false;
  const endRecord = () => {
    record.push(cell);
    if (record.length > 1 || record[0] !== "") records.push(record);
    record = [];
    cell = "";
  };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') cell += text[i++];
      else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === separator) {
      record.push(cell);
      cell = "";
    } else if (c === "\n" || c === "\r") {
      if (c === "\r" && text[i + 1] === "\n") i++;
      endRecord();
    } else cell += c;
  }
  if (cell !== "" || record.length) endRecord();
  return records;
}
