// A canvas in a pane that scrolls sideways, with buttons to zoom; drawn again when the page changes its size or paper.

const repaints = []; // what depends on the paper or the size of the page
const WIDEST = 16000;

/** Puts a canvas into `place`. draw(canvas, context, width of the pane, zoom) sets the size of the canvas by sized(). */
function scroller(place, label, draw, { zoomable = true } = {}) {
  const canvas = element("canvas", { tabindex: 0, role: "img", "aria-label": label });
  const pane = element("div", { class: "pane" }, canvas);
  const buttons = element("div", { class: "zoom" });
  place.replaceChildren(element("div", { class: "scroller" }, buttons, pane));
  const view = { canvas, pane, zoom: 1 };
  view.redraw = () => draw(canvas, canvas.getContext("2d"), pane.clientWidth, view.zoom);
  view.setZoom = (zoom) => {
    const middle = (pane.scrollLeft + pane.clientWidth / 2) / canvas.clientWidth;
    view.zoom = Math.max(1, Math.min(zoom, WIDEST / Math.max(pane.clientWidth, 1)));
    view.redraw();
    pane.scrollLeft = middle * canvas.clientWidth - pane.clientWidth / 2;
  };
  if (zoomable) {
    const kinds = [["+", "zoom in", () => view.zoom * 2], ["\u2212", "zoom out", () => view.zoom / 2], ["fit", "whole width", () => 1]];
    for (const [text, title, zoom] of kinds) {
      const button = element("button", { type: "button", title: `${title}: ${label}` }, text);
      button.addEventListener("click", () => view.setZoom(zoom()));
      buttons.append(button);
    }
  }
  canvas.addEventListener("mouseleave", hideTip);
  canvas.addEventListener("blur", hideTip);
  repaints.push(() => view.redraw());
  return view;
}

/** Give a canvas a size in CSS pixels, as sharp as the screen unless it would become too wide for a browser. */
function sized(canvas, context, width, height) {
  const sharp = Math.min(devicePixelRatio || 1, WIDEST / width);
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  context.clearRect(0, 0, width, height);
}

function redrawAll() {
  for (const repaint of repaints) repaint();
}

let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  redrawAll();
});
darkPaper.addEventListener("change", redrawAll);
for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => {
    printing = on;
    redrawAll();
  });
}
