// Strips of coloured spans over time: units of devices, and the critical path.

const LANE = 22;
const LABEL = 230;
const AXIS = 22;

/** Ticks at 1, 2 or 5 times a power of ten, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, at) => (first + at) * step);
}

/** Shorten a text with an ellipsis to a width. */
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const half = Math.ceil((low + high) / 2);
    if (context.measureText(`${text.slice(0, half)}…`).width <= width) low = half;
    else high = half - 1;
  }
  return `${text.slice(0, low)}…`;
}

/** Time of every part in every column of pixels, [column][part], of spans in order of time. */
function perColumn(lane, nParts, totalPs, nColumns) {
  const columns = Array.from({ length: nColumns }, () => new Float64Array(nParts));
  const width = totalPs / nColumns || 1;
  for (let span = 0; span < lane.start_ps.length; span++) {
    const [start, end] = [lane.start_ps[span], lane.end_ps[span]];
    const last = Math.min(nColumns - 1, Math.floor(end / width));
    for (let column = Math.min(nColumns - 1, Math.floor(start / width)); column <= last; column++) {
      columns[column][lane.part[span]] += Math.max(0, Math.min(end, (column + 1) * width) - Math.max(start, column * width)) / width;
    }
  }
  return columns;
}

/** Paint a lane: in each column of pixels the parts take as much of its height as of its time. */
function paintLane(context, lane, parts, totalPs, { left, width, top, height }) {
  const nColumns = Math.max(1, Math.round(width));
  const columns = perColumn(lane, parts.length, totalPs, nColumns);
  columns.forEach((shares, column) => {
    let bottom = top + height;
    shares.forEach((share, part) => {
      if (!share) return;
      context.fillStyle = data.colours.parts[parts[part]];
      context.fillRect(left + column, bottom - share * height, 1.02, share * height);
      bottom -= share * height;
    });
  });
}

/**
 * parts: names of parts, which have colours. lanes: [{label, start_ps, end_ps, part, tip(at) -> [name, lines]}], spans of
 * a lane in order of time, part an index into parts.
 */
function strip(place, label, parts, lanes, totalPs) {
  const shape = { left: LABEL, width: 1 };
  const draw = (canvas, context, paneWidth, zoom) => {
    const width = Math.max(paneWidth * zoom, 300);
    shape.left = Math.min(LABEL, paneWidth / 3);
    shape.width = width - shape.left - 30;
    sized(canvas, context, width, lanes.length * LANE + AXIS + 4);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const [ink, line] = [cssColour("ink"), cssColour("line")];
    const at = (ps) => shape.left + (totalPs ? (ps / totalPs) * shape.width : 0);
    const bottom = lanes.length * LANE + 2;
    context.textAlign = "center";
    for (const tick of ticks(0, totalPs, shape.width / 110)) {
      context.strokeStyle = line;
      context.beginPath();
      context.moveTo(at(tick), 0);
      context.lineTo(at(tick), bottom);
      context.stroke();
      context.fillStyle = ink;
      context.fillText(shown("time", tick), at(tick), bottom + AXIS / 2);
    }
    lanes.forEach((lane, number) => {
      const top = number * LANE + 3;
      context.textAlign = "left";
      context.fillStyle = ink;
      context.fillText(fitted(context, lane.label, shape.left - 10), 0, top + LANE / 2 - 2);
      context.fillStyle = cssColour("unused");
      context.fillRect(shape.left, top, shape.width, LANE - 6);
      paintLane(context, lane, parts, totalPs, { left: shape.left, width: shape.width, top, height: LANE - 6 });
    });
  };
  const view = scroller(place, label, draw);
  view.canvas.addEventListener("mousemove", (event) => {
    const lane = lanes[Math.floor(event.offsetY / LANE)];
    const ps = ((event.offsetX - shape.left) / shape.width) * totalPs;
    const slack = (1.5 / shape.width) * totalPs;
    let found = -1;
    if (lane && ps >= -slack) {
      let [low, high] = [0, lane.start_ps.length]; // the last span that starts before the pointer
      while (low < high) {
        const half = (low + high) >> 1;
        if (lane.start_ps[half] <= ps + slack) low = half + 1;
        else high = half;
      }
      if (low && lane.end_ps[low - 1] + slack >= ps) found = low - 1;
    }
    if (found < 0) hideTip();
    else showTip(event.clientX, event.clientY, ...lane.tip(found));
  });
  view.redraw();
}

/** Names of parts beside their colours. */
function key(place, parts) {
  place.replaceChildren(
    ...parts.map(([part, text]) => element("span", {}, element("i", { style: `background: ${data.colours.parts[part]}` }), text)),
  );
}

const duration = (start, end) => `${shown("time", end - start)}, from ${shown("time", start)} to ${shown("time", end)}`;

function drawTimeline() {
  const { lanes, report } = data;
  if (!lanes || !lanes.rows.length) return;
  const section = byId("timeline-section");
  section.hidden = false;
  key(section.querySelector(".key"), [["compute", "compute unit"], ["combine", "communication unit, combining"], ["idle", "idle"]]);
  const drawn = lanes.rows.map((row) => {
    const { start_ps, end_ps, n_ops, labels, label } = unpacked(row);
    return {
      label: row.part === "compute" ? row.title : "",
      start_ps,
      end_ps,
      part: new Uint8Array(start_ps.length).fill(row.part === "compute" ? 0 : 1),
      tip: (at) => [
        labels[label[at]],
        [["device", `${row.device}, ${row.title}`], [row.part, duration(start_ps[at], end_ps[at])], ["ops", shown("count", n_ops[at])]],
      ],
    };
  });
  strip(byId("timeline"), "what representative devices did over the step", ["compute", "combine"], drawn, lanes.time_ps);
  section.querySelector(".note").textContent =
    `Step ${lanes.step}: the busiest, median and idlest ${report.system.devices} by compute; above the compute unit, below ` +
    `combinations in reductions. Spans less than ${shown("time", lanes.least_gap_ps)} apart are drawn as one; a name is that of the longest op.`;
}

function drawPath() {
  const path = data.path && unpacked(data.path);
  if (!path) return;
  const section = byId("path-section");
  section.hidden = false;
  key(section.querySelector(".key"), path.totals.map(([part, text, value]) => [part, `${text}: ${shown("time", value)} (${percent(path.total_ps ? value / path.total_ps : 0)})`]));
  const lane = {
    label: `step ${path.step}`,
    start_ps: path.start_ps,
    end_ps: path.end_ps,
    part: path.part,
    tip: (at) => [
      path.labels[path.label[at]],
      [["part", path.parts[path.part[at]]], ["time", duration(path.start_ps[at], path.end_ps[at])], ["op", shown("count", path.op[at])], ["device", shown("count", path.device[at])]],
    ],
  };
  strip(byId("path"), "critical path of the step by part", path.parts, [lane], path.total_ps);
  section.querySelector(".note").textContent = path.note;
  byId("path-table").append(tableOf(path.table));
}
