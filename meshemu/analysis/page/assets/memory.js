// What the fullest device holds over the step, by category, one on top of the other.

function drawMemory() {
  if (!data.memory) return;
  const { device, categories, live_bytes: live, points, number, has_bytes: has } = unpackedMemory(data.memory);
  const section = byId("memory-section");
  section.hidden = false;
  const totals = points.map((_, at) => live.reduce((sum, values) => sum + values[at], 0));
  const most = Math.max(...totals);
  const last = number[number.length - 1];
  const across = { label: "instruction of the step", kind: "number", low: 0, high: Math.max(last, 1) };
  const { frame, x, y } = chart("Bytes held", across, { kind: "bytes", low: 0, high: most * 1.05 || 1 }, { width: 900, height: 360, left: 90, right: 16, top: 30, bottom: 46 });
  let below = points.map(() => 0);
  live.forEach((values, category) => {
    const above = below.map((value, at) => value + values[at]);
    const there = above.map((value, at) => `${x(number[at]).toFixed(2)} ${y(value).toFixed(2)}`);
    const back = below.map((value, at) => `${x(number[at]).toFixed(2)} ${y(value).toFixed(2)}`).reverse();
    frame.append(svg("path", { d: `M${[...there, ...back].join("L")}Z`, fill: data.colours.cycle[category] }));
    below = above;
  });
  frame.addEventListener("mousemove", (event) => {
    const box = frame.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * 900;
    const at = number.reduce((best, _, one) => (Math.abs(x(number[one]) - place) < Math.abs(x(number[best]) - place) ? one : best), 0);
    const lines = categories.map((name, category) => [name, shown("bytes", live[category][at])]);
    showTip(event.clientX, event.clientY, `${number[at]}: ${points[at]}`, [...lines, ["together", shown("bytes", totals[at])]]);
  });
  frame.addEventListener("mouseleave", hideTip);
  byId("memory").append(frame);
  section.querySelector(".key").replaceChildren(
    ...categories.map((name, at) => element("span", {}, element("i", { style: `background: ${data.colours.cycle[at]}` }), name)),
  );
  const share = has ? `, ${percent(most / has)} of the ${shown("bytes", has)} that a device has` : "";
  section.querySelector(".note").textContent = `${device}, which holds most of all devices: at most ${shown("bytes", most)}${share}.`;
}

const unpackedMemory = (memory) => ({ ...memory, number: unpack(memory.number), live_bytes: memory.live_bytes.map(unpack) });
