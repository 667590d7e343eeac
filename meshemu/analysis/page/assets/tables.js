// Tables that sort by any column; long ones show their first rows until asked for all.

const FIRST_ROWS = 20;
const TEXTS = new Set(["text", "yes"]);

/** Values of a column: its own, or those of links or devices. */
function valuesOf(column, sources) {
  if (!column.of) return unpack(column.values);
  const [source, name] = column.of.split(".");
  const { [name]: values, class_names: names } = sources[source];
  return name === "class" ? Array.from(values, (value) => names[value]) : values;
}

function compared(a, b) {
  const none = (value) => value === null || value === undefined || Number.isNaN(value);
  if (none(a) || none(b)) return none(a) - none(b);
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

/** table: {title, columns: [{heading, kind, values}], sorted_by}. */
function tableOf(table, sources = {}) {
  const columns = table.columns.map((column) => ({ ...column, values: valuesOf(column, sources) }));
  const nRows = columns.length ? columns[0].values.length : 0;
  const state = { column: -1, ascending: true, all: nRows <= FIRST_ROWS * 1.5 };
  let order = Array.from({ length: nRows }, (_, row) => row);
  const body = element("tbody");
  const heads = columns.map((column, at) => {
    const button = element("button", { type: "button" }, column.heading);
    const sortable = column.kind !== "figure" && column.heading;
    button.addEventListener("click", () => sortable && sort(at));
    return element("th", { scope: "col", class: TEXTS.has(column.kind) ? "text" : "" }, sortable ? button : column.heading);
  });
  const more = element("button", { type: "button", class: "more" }, `show all ${nRows.toLocaleString("en")} rows`);
  more.addEventListener("click", () => {
    state.all = true;
    fill();
  });

  function fill() {
    const rows = state.all ? order : order.slice(0, FIRST_ROWS);
    body.replaceChildren(
      ...rows.map((row) =>
        element("tr", {}, ...columns.map(({ kind, values }) => element("td", TEXTS.has(kind) ? { class: "text" } : {}, shown(kind, values[row])))),
      ),
    );
    more.hidden = state.all;
  }

  function sort(at, ascending = null) {
    const first = TEXTS.has(columns[at].kind) || columns[at].heading === "id"; // figures: the largest first
    state.ascending = ascending ?? (state.column === at ? !state.ascending : first);
    state.column = at;
    const { values } = columns[at];
    const direction = state.ascending ? 1 : -1;
    order.sort((a, b) => {
      const missing = compared(values[a] ?? null, null) - compared(values[b] ?? null, null);
      return values[a] === null || values[b] === null ? -missing : direction * compared(values[a], values[b]) || a - b;
    });
    heads.forEach((head, number) => {
      if (number === at) head.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    fill();
  }

  if (table.sorted_by !== undefined) sort(table.sorted_by, false);
  else fill();
  return element("div", { class: "rows" }, element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body), more);
}

function drawTables(sources) {
  for (const table of data.tables) {
    const section = element("section", { id: `table-${table.name}` }, element("h2", {}, table.title), tableOf(table, sources));
    byId("tables").append(section);
  }
}
