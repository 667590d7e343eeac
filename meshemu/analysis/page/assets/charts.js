// Charts with two axes as SVG: curves over training steps, and the roofline.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 640, height: 340, left: 74, right: 16, top: 30, bottom: 46 };

function svg(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

const decades = (low, high) => {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((last - first) / 7));
  return Array.from({ length: Math.max(0, Math.floor((last - first) / every) + 1) }, (_, at) => 10 ** (first + every * at));
};

/** An empty chart: {frame, x(value), y(value)}; axes: {title, label, kind, low, high, log}. */
function chart(title, across, up, box = BOX) {
  const frame = svg("svg", { viewBox: `0 0 ${box.width} ${box.height}`, width: box.width, height: box.height, role: "img", "aria-label": title });
  const scale = ({ low, high, log }, from, to) => {
    const place = log ? Math.log : Number;
    const [a, b] = [place(low), place(high)];
    return (value) => from + ((place(value) - a) / (b - a || 1)) * (to - from);
  };
  const x = scale(across, box.left, box.width - box.right);
  const y = scale(up, box.height - box.bottom, box.top);
  const ticksOf = ({ low, high, log }, count) => (log ? decades(low, high) : ticks(low, high, count));
  const [left, right, top, bottom] = [box.left, box.width - box.right, box.top, box.height - box.bottom];
  for (const value of ticksOf(across, 7)) {
    frame.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: bottom }));
    frame.append(svg("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, shown(across.kind, value)));
  }
  for (const value of ticksOf(up, 6)) {
    frame.append(svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    frame.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, shown(up.kind, value)));
  }
  frame.append(svg("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` }));
  frame.append(svg("text", { class: "title", x: left, y: 16 }, title));
  frame.append(svg("text", { x: (left + right) / 2, y: box.height - 8, "text-anchor": "middle" }, across.label));
  return { frame, x, y };
}

/** A point that tells what it is under the pointer. */
function point(x, y, colour, name, lines, hollow = false) {
  const mark = svg("circle", { cx: x, cy: y, r: 4.5, fill: hollow ? "var(--paper)" : colour, stroke: colour, "stroke-width": 2 });
  mark.addEventListener("mousemove", (event) => showTip(event.clientX, event.clientY, name, lines));
  mark.addEventListener("mouseleave", hideTip);
  return mark;
}

/** curves: [{name, values, points}] over steps, with NaN where nothing was computed. */
function curvesOf({ title, kind, curves, steps }) {
  const all = curves.flatMap(({ values }) => Array.from(values).filter((value) => !Number.isNaN(value)));
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const room = (high - low) * 0.05;
  const ends = steps.length > 1 ? [steps[0], steps[steps.length - 1]] : [steps[0] - 0.5, steps[0] + 0.5];
  const { frame, x, y } = chart(title, { label: "training step", kind: "number", low: ends[0], high: ends[1] }, { kind, low: low - room, high: high + room });
  curves.forEach(({ name, values }, number) => {
    const colour = data.colours.cycle[number % data.colours.cycle.length];
    const known = Array.from(steps.keys()).filter((at) => !Number.isNaN(values[at]));
    const d = known.map((at, first) => `${first ? "L" : "M"}${x(steps[at]).toFixed(2)} ${y(values[at]).toFixed(2)}`).join("");
    frame.append(svg("path", { d, fill: "none", stroke: colour, "stroke-width": 1.8 }));
    const marked = known.length <= 60 ? known : [known[0], known[known.length - 1]];
    for (const at of marked) frame.append(point(x(steps[at]), y(values[at]), colour, name, [["step", String(steps[at])], ["value", shown(kind, values[at])]], true));
    if (curves.length > 1) frame.append(svg("text", { x: BOX.width - BOX.right, y: BOX.top + 14 + 15 * number, "text-anchor": "end", style: `fill: ${colour}` }, name));
  });
  return frame;
}

function drawTraining() {
  const training = data.training;
  if (!training || !training.charts.length) return;
  byId("training-section").hidden = false;
  const steps = unpack(training.steps);
  for (const entry of training.charts) {
    const curves = entry.curves.map((curve) => ({ ...curve, values: unpack(curve.values) }));
    byId("training").append(curvesOf({ ...entry, curves, steps }));
  }
}
