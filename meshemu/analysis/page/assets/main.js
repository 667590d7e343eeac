// The page from its figures.

function drawHead() {
  const { report } = data;
  byId("title").textContent = data.title;
  byId("about").textContent = data.about;
  byId("verdict").textContent = report.verdict;
  for (const [name, kind, value] of data.headline) {
    byId("figures").append(element("div", {}, element("dt", {}, name), element("dd", {}, shown(kind, value))));
  }
}

function drawTexts() {
  for (const [name, texts] of [["assumptions", data.report.assumptions], ["advice", data.advice]]) {
    if (!texts.length) continue;
    byId(`${name}-section`).hidden = false;
    byId(name).append(...texts.map((text) => element("li", {}, text)));
  }
  byId("config").textContent = data.config;
}

function drawContents() {
  for (const section of document.querySelectorAll("main section")) {
    if (!section.hidden) byId("contents").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  }
}

drawHead();
const sources = drawWafer();
drawTimeline();
drawPath();
drawRoofline();
drawMemory();
drawTraining();
drawTables(sources);
drawTexts();
drawContents();
document.documentElement.dataset.ready = String(Math.round(performance.now()));
