// Figures, quantities as text, elements and colours. All text enters the page as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };

/** The array behind {dtype, shape, base64}; other arrays as they are. */
function unpack(value) {
  if (!value || value.base64 === undefined) return value;
  const bytes = Uint8Array.from(atob(value.base64), (letter) => letter.charCodeAt(0));
  return new ARRAYS[value.dtype](bytes.buffer);
}

/** An object with all arrays in it, at any depth of objects, unpacked. */
function unpacked(object) {
  if (!object || typeof object !== "object" || Array.isArray(object)) return object;
  if (object.base64 !== undefined) return unpack(object);
  return Object.fromEntries(Object.entries(object).map(([key, value]) => [key, unpacked(value)]));
}

const PREFIXES = ["f", "p", "n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/** Four significant digits with a decimal prefix, as meshemu prints quantities. */
function quantity(value, unit, scale = 0) {
  if (!value) return `0 ${unit}`;
  const [digits, power] = Math.abs(value).toExponential(3).split("e");
  const exponent = Number(power) + scale;
  const thousands = Math.max(-5, Math.min(6, Math.floor(exponent / 3)));
  const text = Number(`${digits}e${exponent - 3 * thousands}`).toPrecision(4);
  const plain = text.includes("e") ? String(Number(text)) : text;
  const short = plain.includes(".") ? plain.replace(/\.?0+$/, "") : plain;
  return `${value < 0 ? "-" : ""}${short} ${PREFIXES[thousands + 5]}${unit}`;
}

function percent(value) {
  return `${(100 * value).toFixed(value >= 0.01 || value === 0 ? 1 : 3)} %`;
}

const FORMS = {
  text: (value) => String(value),
  figure: (value) => value,
  yes: (value) => (value ? "yes" : "no"),
  count: (value) => value.toLocaleString("en"),
  number: (value) => String(Number(value.toPrecision(6))),
  share: percent,
  time: (value) => quantity(value, "s", -12),
  bytes: (value) => quantity(value, "B"),
  known_bytes: (value) => (value < 0 ? "-" : quantity(value, "B")),
  flops: (value) => quantity(value, "FLOP"),
  rate: (value) => quantity(value, "FLOP/s"),
  bandwidth: (value) => quantity(value, "B/s"),
  power: (value) => quantity(value, "W"),
  energy: (value) => quantity(value, "J"),
};

/** A value as text, "-" where there is none. */
function shown(kind, value) {
  return value === null || value === undefined || Number.isNaN(value) ? "-" : FORMS[kind](value);
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);

const darkPaper = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const isDark = () => darkPaper.matches && !printing;

/** The steps of a scale for the paper in use; data.colours[name] holds both. */
const scaleOf = (name) => data.colours[name][isDark() ? "dark" : "light"];

/** Colour of a share from 0 to 1 on a scale. */
function colourAt(steps, share) {
  return steps[Math.round(Math.max(0, Math.min(1, share)) * (steps.length - 1))];
}

const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const tip = byId("tip");

/** Show name and lines [label, text] near a point of the window. */
function showTip(x, y, name, lines) {
  const rows = lines.map(([label, text]) => element("tr", {}, element("td", {}, label), element("td", {}, text)));
  tip.replaceChildren(element("b", {}, name), element("table", {}, ...rows));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
}

function hideTip() {
  tip.hidden = true;
}
