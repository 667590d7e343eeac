// The roofline: what classes of ops achieve by their intensity, under the roofs of one device.

function drawRoofline() {
  if (!data.roofline) return;
  const { points, roofs, bounds } = data.roofline;
  const section = byId("roofline-section");
  section.hidden = false;
  const slopes = roofs.filter((roof) => roof.slope);
  const levels = roofs.filter((roof) => !roof.slope);
  const ridges = levels.flatMap((level) => slopes.map((slope) => level.rate_per_s / slope.rate_per_s));
  const places = [...points.map((point) => point.intensity_flop_per_byte), ...ridges];
  const rates = [...points.map((point) => point.achieved_flops_per_s), ...levels.map((level) => level.rate_per_s)];
  const across = { label: "intensity: FLOP per byte of the device's memory", kind: "number", log: true };
  Object.assign(across, { low: Math.min(...places) / 3, high: Math.max(...places) * 3 });
  const up = { kind: "rate", log: true, low: Math.min(...rates) / 3, high: Math.max(...rates) * 3 };
  const box = { width: 900, height: 460, left: 100, right: 16, top: 30, bottom: 46 };
  const { frame, x, y } = chart("Achieved per device", across, up, box);
  const line = (x0, y0, x1, y1) => frame.append(svg("line", { class: "axis", "stroke-width": 1.5, x1: x(x0), y1: y(y0), x2: x(x1), y2: y(y1) }));
  for (const { name, rate_per_s: rate } of levels) {
    line(across.low, rate, across.high, rate);
    frame.append(svg("text", { x: box.width - box.right, y: y(rate) - 5, "text-anchor": "end" }, `${name}: ${shown("rate", rate)}`));
  }
  for (const { name, rate_per_s: rate } of slopes) {
    const [first, last] = [Math.max(across.low, up.low / rate), Math.min(across.high, up.high / rate)];
    if (first >= last) continue;
    line(first, rate * first, last, rate * last);
    const [px, py] = [x(first) + 14, y(rate * first) - 14];
    const angle = (Math.atan2(y(rate * last) - y(rate * first), x(last) - x(first)) * 180) / Math.PI;
    frame.append(svg("text", { x: px, y: py, transform: `rotate(${angle} ${px} ${py})` }, `${name}: ${shown("bandwidth", rate)}`));
  }
  const total = points.reduce((sum, point) => sum + point.device_ps, 0);
  const colourOf = (bound) => data.colours.cycle[bounds.indexOf(bound) % data.colours.cycle.length];
  for (const { op_class: name, number_format: format, ...figures } of points) {
    const lines = [
      ["achieved", `${shown("rate", figures.achieved_flops_per_s)} (${percent(figures.of_roof)} of its roof)`],
      ["intensity", `${shown("number", figures.intensity_flop_per_byte)} FLOP/B`],
      ["bound by", `${figures.bound} (${percent(figures.share)} of its time)`],
      ["ops", shown("count", figures.ops)],
      ["share of compute time", percent(figures.device_ps / total)],
    ];
    const [px, py] = [x(figures.intensity_flop_per_byte), y(figures.achieved_flops_per_s)];
    const mark = point(px, py, colourOf(figures.bound), `${name} ${format}`, lines);
    mark.setAttribute("r", Math.max(3.5, 22 * Math.sqrt(figures.device_ps / total)));
    mark.setAttribute("fill-opacity", 0.6);
    frame.append(mark);
  }
  byId("roofline").append(frame);
  section.querySelector(".key").replaceChildren(
    ...bounds.map((bound) => element("span", {}, element("i", { style: `background: ${colourOf(bound)}` }), `bound by ${bound}`)),
  );
  section.querySelector(".note").textContent =
    "Each point is a class of compute ops in a number format; its area is its share of the compute time of all devices.";
}
