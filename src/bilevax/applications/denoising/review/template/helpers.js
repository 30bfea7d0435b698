// Elements, texts and numbers. Text of the user's data reaches the page by textContent and setAttribute alone.

const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Control characters become visible, such as \x00; line breaks and tabs stay.
function visible(text) {
  const shown = (c) => "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0");
  return text.replace(/\r\n?/g, "\n").replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, shown);
}

const bdi = (text) => el("bdi", {}, visible(text));
const numbers = new Intl.NumberFormat("en");
const count = (n) => numbers.format(n);

function percent(p) {
  if (p > 0.995) return p >= 0.9995 ? ">99.9%" : (100 * p).toFixed(1) + "%";
  if (p > 0 && p < 0.005) return "<1%";
  return Math.round(100 * p) + "%";
}

// A line of which the share p is filled.
function bar(p) {
  const fill = el("i");
  fill.style.width = 100 * p + "%";
  return el("span", { class: "bar", "aria-hidden": "true" }, fill);
}

let saying = 0;
function say(text, bad) {
  const status = $("status");
  status.textContent = text;
  status.className = bad ? "shown bad" : "shown";
  clearTimeout(saying);
  saying = setTimeout(() => (status.className = ""), bad ? 12000 : 4000);
}

// Storage that may be missing or full (private windows, some browsers on files).
function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}
