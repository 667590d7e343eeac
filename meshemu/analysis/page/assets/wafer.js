// The grid of devices with its links: what colours them, at which time, and what lies under the pointer or is chosen by keys.

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function drawWafer() {
  const { rows, cols, unit } = data.wafer;
  const figures = waferFigures();
  const painter = waferPainter(figures);
  const { links, devices } = figures;
  let chosen = null;
  const view = scroller(byId("wafer"), `mesh of ${rows} by ${cols} ${unit}s`, (...where) => painter.paint(...where, chosen));

  function choose(next, clientX, clientY) {
    const changed = JSON.stringify(next) !== JSON.stringify(chosen);
    chosen = next;
    if (!next) hideTip();
    else if (next.kind === "link") showTip(clientX, clientY, `link ${next.id}: ${links.name[next.id]}`, figures.ofLink(next.id));
    else showTip(clientX, clientY, `${unit} ${next.id}: ${devices.place[next.id]}`, figures.ofDevice(next.id));
    if (changed) view.redraw();
  }

  /** The device that a chosen device or link is at. */
  const deviceAt = () => (!chosen ? 0 : chosen.kind === "device" ? chosen.id : Math.min(links.src[chosen.id], rows * cols - 1));

  function neighbour(device, [down, right]) {
    const row = Math.max(0, Math.min(rows - 1, Math.floor(device / cols) + down));
    const col = Math.max(0, Math.min(cols - 1, (device % cols) + right));
    return { kind: "device", id: row * cols + col };
  }

  function nextLink(device) {
    const out = Array.from(links.on_grid).filter((link) => links.src[link] === device);
    if (!out.length) return chosen;
    return { kind: "link", id: out[chosen && chosen.kind === "link" ? (out.indexOf(chosen.id) + 1) % out.length : 0] };
  }

  function onKey(event) {
    const device = deviceAt();
    let next = null;
    if (MOVES[event.key]) next = neighbour(device, MOVES[event.key]);
    else if (event.key === "l") next = nextLink(device);
    else if (event.key !== "Escape") return;
    event.preventDefault();
    const box = view.canvas.getBoundingClientRect();
    const [x, y] = painter.placeOf(next && next.kind === "device" ? next.id : device);
    choose(next, box.left + x, box.top + y);
  }

  view.canvas.addEventListener("mousemove", (event) => choose(painter.under(event.offsetX, event.offsetY), event.clientX, event.clientY));
  view.canvas.addEventListener("mouseleave", () => choose(null));
  view.canvas.addEventListener("keydown", onKey);
  waferControls(figures, () => view.redraw());
  const alone = links.name.length - links.on_grid.length;
  byId("wafer-note").textContent = [
    "An arrow is a directed link, on the right-hand side of its travel. Frames are tiles; crossed devices are dead.",
    alone ? `${alone.toLocaleString("en")} links of injection, ejection or the Z-plane are in the table of links only.` : "",
    "With the keyboard: arrows move between devices, l goes through the links of a device, Escape lets go.",
  ].join(" ");
  return { links, devices };
}

/** Menus, slider and legends. */
function waferControls(figures, redraw) {
  const { state, use, nBins } = figures;
  const [linksBy, devicesBy, time] = ["links-by", "devices-by", "time"].map(byId);
  for (const [key, text] of LINKS_BY) linksBy.append(element("option", { value: key }, text));
  for (const [key, text] of DEVICES_BY) {
    if (key !== "memory" || figures.hasMemory) devicesBy.append(element("option", { value: key }, text));
  }
  time.max = String(nBins);

  function legend(place, scale, { title, kind, top }) {
    const bar = element("div", { class: "bar", style: `background: linear-gradient(to right, ${scaleOf(scale).join(",")})` });
    const ends = [0, top / 2, top].map((value) => element("span", {}, shown(kind, value)));
    place.replaceChildren(element("div", {}, title), bar, element("div", { class: "ends" }, ...ends));
  }

  function timeText() {
    if (!nBins) return "whole step (no timeline recorded)";
    if (state.links !== "utilisation") return "whole step (over time only use is known)";
    if (state.bin < 0) return "whole step";
    return `${shown("time", use.edge_ps[state.bin])} to ${shown("time", use.edge_ps[state.bin + 1])}`;
  }

  function update() {
    state.links = linksBy.value;
    state.devices = devicesBy.value;
    state.bin = state.links === "utilisation" ? Number(time.value) - 1 : -1;
    time.disabled = !nBins || state.links !== "utilisation";
    byId("time-text").textContent = timeText();
    paintLegends();
    redraw();
  }

  function paintLegends() {
    const scale = figures.linkScale();
    legend(byId("links-legend"), "links", { ...scale, title: `links: ${scale.title} (unused grey)` });
    const ofDevices = figures.deviceScale();
    if (state.devices) legend(byId("devices-legend"), "devices", { ...ofDevices, title: `devices: ${ofDevices.title}` });
    else byId("devices-legend").replaceChildren();
  }

  for (const control of [linksBy, devicesBy, time]) control.addEventListener("input", update);
  repaints.push(paintLegends);
  update();
}
