// Which figures of links and devices are chosen, their scales, and what is said of each.

const LINKS_BY = [
  ["utilisation", "time in use", "share"],
  ["bytes", "bytes carried", "bytes"],
  ["wait_ps", "packets waiting, summed", "time"],
  ["max_queue", "longest queue", "count"],
];
const DEVICES_BY = [
  ["", "nothing", "count"],
  ["compute", "compute, share of the step", "share"],
  ["idle", "idle, share of the step", "share"],
  ["memory", "peak memory", "bytes"],
];

/** state: {links, devices, bin}, the chosen figures and time (bin -1: the whole step). */
function waferFigures() {
  const last = data.report.last_step;
  const links = unpacked(data.wafer.links);
  const devices = unpacked(data.wafer.devices);
  const use = data.wafer.use && unpacked(data.wafer.use);
  const nLinks = links.name.length;
  const state = { links: "utilisation", devices: "", bin: -1 };
  const ofStep = (values) => values && Array.from(values, (value) => (last.time_ps ? value / last.time_ps : 0));
  const deviceValues = { compute: ofStep(devices.compute_ps), idle: ofStep(devices.idle_ps), memory: devices.peak_memory_bytes };
  const highest = (values) => values.reduce((most, value) => Math.max(most, value), 0);
  const inBin = (link) => use.share[state.bin * nLinks + link] / use.share_units;
  const withShare = (value) => `${shown("time", value)} (${percent(last.time_ps ? value / last.time_ps : 0)})`;

  return {
    links,
    devices,
    use,
    state,
    nBins: use ? use.edge_ps.length - 1 : 0,
    hasMemory: Boolean(devices.peak_memory_bytes && devices.peak_memory_bytes.some((value) => value >= 0)),

    linkValue(link) {
      if (!last) return 0;
      return state.bin >= 0 ? inBin(link) : links[state.links][link];
    },

    /** {title, kind, top}: what colours of links mean; top: the value of the last colour. */
    linkScale() {
      const [, title, kind] = LINKS_BY.find(([key]) => key === state.links);
      if (!last) return { title, kind, top: 0 };
      if (state.bin >= 0) return { title: `${title}, share of this time`, kind, top: use.scale };
      if (state.links === "utilisation") return { title: `${title}, share of the step`, kind, top: links.utilisation_scale };
      return { title, kind, top: highest(Array.from(links.on_grid, (link) => links[state.links][link])) };
    },

    deviceScale() {
      const [key, title, kind] = DEVICES_BY.find(([name]) => name === state.devices);
      const values = last && key ? deviceValues[key] : null;
      return { title, kind, values, top: values ? (kind === "share" ? 1 : highest(values)) : 0 };
    },

    /** Lines [label, text] about a device. */
    ofDevice(id) {
      if (!devices.alive[id]) return [["state", "dead"]];
      if (!last) return [["state", "no step completed"]];
      const lines = [["compute", withShare(devices.compute_ps[id])], ["idle", withShare(devices.idle_ps[id])]];
      if (devices.peak_memory_bytes[id] >= 0) lines.push(["peak memory", shown("bytes", devices.peak_memory_bytes[id])]);
      return lines;
    },

    /** Lines [label, text] about a link. */
    ofLink(id) {
      const [rate, latency] = [shown("bandwidth", links.bandwidth_bytes_per_s[id]), shown("time", links.latency_ps[id])];
      const lines = [["class", `${links.class_names[links.class[id]]}, ${rate}, ${latency}`]];
      if (!last) return lines;
      lines.push(["in use, whole step", percent(links.utilisation[id])]);
      if (state.bin >= 0) lines.push(["in use, at this time", percent(inBin(id))]);
      lines.push(["carried", shown("bytes", links.bytes[id])], ["packets waited", shown("time", links.wait_ps[id])]);
      return [...lines, ["longest queue", shown("count", links.max_queue[id])]];
    },
  };
}
