// Paints the grid on a canvas, and finds what lies under a point of it.

const HALF = 0.22;
const MARGIN = 0.6;
const LARGEST_PITCH = 120;
const GREATEST_HEIGHT = 660;
const LEAST_PITCH = 6;
const LEAST_LABELLED_PITCH = 44;
const REACH = 0.2;
const CORNERS = 10; // numbers to an arrow: five corners

function waferPainter(figures) {
  const { rows, cols, room, tile_edges: edges, bars } = data.wafer;
  const { links, devices } = figures;
  const wide = cols - 1 + 2 * MARGIN + room.left + room.right;
  const high = rows - 1 + 2 * MARGIN + room.upper + room.lower;
  const onGrid = new Map(Array.from(links.on_grid, (link, at) => [link, at]));
  let pitch = 1;
  const x = (col) => (col + MARGIN + room.left) * pitch;
  const y = (row) => (row + MARGIN + room.upper) * pitch;

  function lines(context, segments) {
    context.beginPath();
    for (const [x0, y0, x1, y1] of segments) {
      context.moveTo(x(x0), y(y0));
      context.lineTo(x(x1), y(y1));
    }
    context.stroke();
  }

  function arrow(context, link) {
    const first = CORNERS * onGrid.get(link);
    context.beginPath();
    for (let at = first; at < first + CORNERS; at += 2) context.lineTo(x(links.arrow[at]), y(links.arrow[at + 1]));
    context.closePath();
  }

  function paintFrame(context) {
    context.strokeStyle = cssColour("edge");
    context.lineWidth = Math.min(1.2, 0.4 + pitch / 40);
    lines(context, edges.x.map((edge) => [edge, -0.5, edge, rows - 0.5]));
    lines(context, edges.y.map((edge) => [-0.5, edge, cols - 0.5, edge]));
    context.lineWidth = Math.max(2, pitch / 14);
    lines(context, bars);
  }

  function paintDevices(context) {
    const { values, top } = figures.deviceScale();
    const steps = scaleOf("devices");
    const [plain, dead, ink, paper] = ["device", "dead", "ink", "paper"].map(cssColour);
    const size = 2 * HALF * pitch;
    context.font = `${Math.min(13, pitch * 0.17)}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.strokeStyle = dead;
    context.lineWidth = Math.min(1.5, pitch / 14);
    for (let device = 0; device < devices.alive.length; device++) {
      const [row, col] = [Math.floor(device / cols), device % cols];
      if (!devices.alive[device]) {
        const [w, n, e, s] = [col - HALF, row - HALF, col + HALF, row + HALF];
        context.strokeRect(x(w), y(n), size, size);
        lines(context, [[w, n, e, s], [e, n, w, s]]);
        continue;
      }
      const known = values && values[device] >= 0;
      const share = known && top ? values[device] / top : 0;
      context.fillStyle = known ? colourAt(steps, share) : plain;
      context.fillRect(x(col - HALF), y(row - HALF), size, size);
      if (pitch >= LEAST_LABELLED_PITCH) {
        context.fillStyle = known && share > 0.55 ? paper : ink;
        context.fillText(`${row},${col}`, x(col), y(row));
      }
    }
  }

  function paintLinks(context) {
    const { top } = figures.linkScale();
    const steps = scaleOf("links");
    const unused = cssColour("unused");
    const valued = Array.from(links.on_grid, (link) => [figures.linkValue(link), link]);
    valued.sort((a, b) => a[0] - b[0] || a[1] - b[1]); // the busiest on top
    for (const [value, link] of valued) {
      arrow(context, link);
      context.fillStyle = value > 0 && top ? colourAt(steps, value / top) : unused;
      context.fill();
    }
  }

  function paintOutline(context, { kind, id }) {
    context.strokeStyle = cssColour("accent");
    context.lineWidth = 2.5;
    if (kind === "link") {
      arrow(context, id);
      context.stroke();
    } else {
      const size = 2 * HALF * pitch;
      context.strokeRect(x((id % cols) - HALF), y(Math.floor(id / cols) - HALF), size, size);
    }
  }

  // Links by the cell of the grid where an arrow's first corner lies, so that a pointer looks at a few only.
  const cells = new Map();
  const cellOf = (col, row) => `${Math.round(col)}:${Math.round(row)}`;
  for (const [link, at] of onGrid) {
    const cell = cellOf(links.arrow[CORNERS * at], links.arrow[CORNERS * at + 1]);
    cells.set(cell, [...(cells.get(cell) || []), link]);
  }

  /** Distance from a point to the line from the middle of an arrow's tail to its tip. */
  function toArrow(link, col, row) {
    const corners = links.arrow.subarray(CORNERS * onGrid.get(link), CORNERS * onGrid.get(link) + CORNERS);
    const [ax, ay] = [(corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2];
    const [dx, dy] = [corners[6] - ax, corners[7] - ay];
    const along = ((col - ax) * dx + (row - ay) * dy) / (dx * dx + dy * dy || 1);
    const near = Math.max(0, Math.min(1, along));
    return Math.hypot(col - ax - near * dx, row - ay - near * dy);
  }

  function nearestLink(col, row) {
    let [best, least] = [-1, REACH];
    for (const dx of [-1, 0, 1]) {
      for (const dy of [-1, 0, 1]) {
        for (const link of cells.get(cellOf(Math.round(col) + dx, Math.round(row) + dy)) || []) {
          const distance = toArrow(link, col, row);
          if (distance < least) [best, least] = [link, distance];
        }
      }
    }
    return best;
  }

  return {
    /** chosen: {kind: "device" or "link", id} to outline, or null. */
    paint(canvas, context, paneWidth, zoom, chosen) {
      const fitting = Math.min(paneWidth / wide, LARGEST_PITCH, Math.max(GREATEST_HEIGHT / high, LEAST_PITCH));
      pitch = Math.min(fitting * zoom, WIDEST / wide);
      sized(canvas, context, wide * pitch, high * pitch);
      paintFrame(context);
      paintDevices(context);
      paintLinks(context);
      if (chosen) paintOutline(context, chosen);
    },

    /** The device or link at a point of the canvas, or null. */
    under(canvasX, canvasY) {
      const [col, row] = [canvasX / pitch - MARGIN - room.left, canvasY / pitch - MARGIN - room.upper];
      const [c, r] = [Math.round(col), Math.round(row)];
      const onDevice = c >= 0 && c < cols && r >= 0 && r < rows && Math.abs(col - c) <= HALF && Math.abs(row - r) <= HALF;
      if (onDevice) return { kind: "device", id: r * cols + c };
      const link = nearestLink(col, row);
      return link >= 0 ? { kind: "link", id: link } : null;
    },

    /** Where the middle of a device lies on the canvas. */
    placeOf: (device) => [x(device % cols), y(Math.floor(device / cols))],
  };
}
