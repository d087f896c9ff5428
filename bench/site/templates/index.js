{
const DataTable = tables.default;
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const view = { tab: 0, table: null, chosen: [], restoring: false };
const tab = () => data.tabs[view.tab];

/* All text comes from records, and records come from strangers: it is only ever set as text. */
function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* Figures */
const isFigure = (column) => ["rate", "number", "bytes"].includes(column.kind);
const looks = (column) => (column.key === "best" ? "best" : column.kind === "bytes" ? "number" : column.kind);
const short = (x) => x.toFixed(2).replace(/^0\./, ".");
const interval = (e) => (e.low === undefined ? "" : `${short(e.low)}–${short(e.high)}`);

function written(entry, kind) {
  if (entry.word) return entry.word;
  if (entry.value === null) return "n/a";
  if (kind === "bytes" && entry.value < 1000) return `${entry.value} B`;
  if (kind === "bytes") return entry.value < 1e5 ? `${(entry.value / 1e3).toFixed(1)} kB` : `${(entry.value / 1e6).toFixed(1)} MB`;
  if (kind === "rate") return entry.value.toFixed(2);
  if (entry.digits !== undefined) return entry.value.toFixed(entry.digits);
  return Number.isInteger(entry.value) ? String(entry.value) : entry.value.toPrecision(4);
}

function inWords(entry, column) {
  const parts = [written(entry, column.kind)];
  if (entry.low !== undefined) parts.push(`95 % interval ${entry.low.toFixed(3)} to ${entry.high.toFixed(3)}`);
  if (entry.n) parts.push(`N ${entry.n}`);
  if (entry.unscored) parts.push(`${entry.unscored} unscored`);
  if (entry.attacked !== undefined) parts.push(`${entry.attacked} attacked`);
  if (entry.p !== undefined) parts.push(`against no attack p = ${entry.p.toPrecision(2)}`);
  if (column.reference !== null) parts.push(`never learned: ${column.reference.toFixed(2)}`);
  return parts.join(", ");
}

function bar(entry, reference) {
  const x = (value) => (3 + 86 * Math.min(1, Math.max(0, value))).toFixed(1);
  const line = (kind, from, to) => drawn("line", { class: kind, x1: x(from), x2: x(to), y1: 6, y2: 6 });
  const svg = drawn("svg", { class: "bar", viewBox: "0 0 92 12", "aria-hidden": "true" }, line("track", 0, 1));
  if (entry.low !== undefined) svg.append(line("band", entry.low, entry.high));
  if (reference !== null) {
    svg.append(drawn("line", { class: "reference", x1: x(reference), x2: x(reference), y1: 0, y2: 12 }));
  }
  svg.append(drawn("circle", { class: "dot", cx: x(entry.value), cy: 6, r: 3 }));
  return svg;
}

function shownEntry(entry, column) {
  if (!entry) return node("span", { class: "none" }, "·");
  const words = inWords(entry, column);
  const text = written(entry, column.kind);
  const value = entry.cell
    ? node("a", { class: "value", href: `cells/${entry.cell}.html`, "aria-label": words, title: words }, text)
    : node("span", { class: "value", title: words }, text);
  const box = node("span", {}, value);
  if (entry.marks) box.append(node("span", { class: "mark" }, entry.marks));
  if (column.kind === "rate" && typeof entry.value === "number") {
    box.append(bar(entry, column.reference), node("span", { class: "ends" }, interval(entry)));
  }
  return box;
}

function shownName(line, column) {
  if (column.key !== "method") return node("span", {}, line.names[column.key]);
  const { method, ...others } = line.names;
  const named = [method, ...Object.entries(others).map(([key, name]) => `${key.replace("facet ", "")} ${name}`)];
  const box = node("input", {
    type: "checkbox", "aria-label": `compare ${named.join(", ")}`, "data-key": line.key,
    onchange: (event) => choose(line.key, event.target.checked),
  });
  box.checked = view.chosen.includes(line.key);
  const role = { base: "unchanged model", given: "the model as given", reference: "the reference" }[line.role];
  const name = node("span", {}, line.names.method);
  if (role) name.append(node("span", { class: "role" }, role));
  return node("label", {}, box, name);
}

function shownFlags(line) {
  return node("span", {}, ...line.flags.map(([word, text]) => {
    const flag = node("button", { class: "flag", type: "button" }, word);
    explains(flag, text);
    return flag;
  }));
}

function shown(line, column) {
  if (column.kind === "text") return shownName(line, column);
  if (column.kind === "flags") return shownFlags(line);
  if (column.kind === "letters") return node("span", { class: "letters", title: plain(line, column) }, spans(plain(line, column)));
  return shownEntry(line.entries[column.key], column);
}

function plain(line, column) {
  if (column.kind === "text") return line.names[column.key];
  if (column.kind === "flags") return line.flags.map(([word]) => word).join(", ");
  const entry = line.entries[column.key];
  if (column.kind === "letters") return entry?.word ?? "";
  return entry && typeof entry.value === "number" ? entry.value : null;
}

/* "abcdg" as "a–d g" */
const spans = (letters) => [...letters].reduce((runs, letter) => {
  const last = runs.at(-1);
  if (last && letter.charCodeAt(0) === last[1].charCodeAt(0) + 1) last[1] = letter;
  else runs.push([letter, letter]);
  return runs;
}, []).map(([from, to]) => (from === to ? from : to.charCodeAt(0) - from.charCodeAt(0) === 1 ? from + to : `${from}–${to}`)).join(" ");

/* DataTables reads the text that it searches as HTML. */
function searched(line, column) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  return String(plain(line, column) ?? "").replace(/[&<>]/g, (c) => entities[c]);
}

/* Definitions: by pointer, by tap, by keyboard */
function explains(button, text) {
  const box = at("definition");
  const show = () => {
    box.textContent = text;
    box.hidden = false;
    const place = button.getBoundingClientRect(), size = box.getBoundingClientRect();
    const left = Math.max(8, Math.min(place.left, innerWidth - size.width - 8));
    const below = place.bottom + 6, above = place.top - size.height - 6;
    box.style.left = `${left}px`;
    box.style.top = `${below + size.height > innerHeight && above > 0 ? above : below}px`;
    button.setAttribute("aria-describedby", "definition");
  };
  const hide = () => {
    box.hidden = true;
    button.removeAttribute("aria-describedby");
  };
  const stop = (event) => event.stopPropagation();
  button.addEventListener("mouseenter", show);
  button.addEventListener("focus", show);
  button.addEventListener("click", (event) => { stop(event); show(); });
  button.addEventListener("mousedown", stop);
  button.addEventListener("keypress", stop);
  button.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  button.addEventListener("mouseleave", hide);
  button.addEventListener("blur", hide);
}

/* The table of one tab */
const missingLast = (sign) => (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : sign * (a - b));
DataTable.ext.type.order["figure-asc"] = missingLast(1);
DataTable.ext.type.order["figure-desc"] = missingLast(-1);

function header(column) {
  const button = node("button", { class: "define", type: "button", "aria-label": `What is ${column.title}?` }, "?");
  explains(button, column.about);
  return node("th", { class: looks(column), scope: "col" },
    column.title, button);
}

function open(number) {
  view.tab = number;
  view.chosen = [];
  document.querySelectorAll("[role=tab]").forEach((button, i) => {
    button.setAttribute("aria-selected", String(i === number));
    button.tabIndex = i === number ? 0 : -1;
  });
  at("panel").setAttribute("aria-labelledby", `tab-${number}`);
  if (view.table) view.table.destroy();
  const { columns, lines, notes, title } = tab();
  const table = node("table", {}, node("thead", {}, node("tr", {}, ...columns.map(header))));
  const wide = node("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Table of ${title}` }, table);
  at("lines").replaceChildren(wide);
  const paged = lines.length > 50;
  view.table = new DataTable(table, {
    data: lines,
    columns: columns.map((column) => ({
      data: null,
      render: (_data, type, line) => (type === "display" ? shown : type === "filter" ? searched : plain)(line, column),
      className: looks(column),
      type: isFigure(column) ? "figure" : "string",
      orderSequence: column.kind === "rate" ? ["desc", "asc"] : ["asc", "desc"],
      searchBuilderTitle: column.title,
      searchBuilderType: isFigure(column) ? "num" : "string",
    })),
    order: [[columns.findIndex((c) => c.kind === "rate"), "desc"]],
    autoWidth: false,
    deferRender: true,
    pageLength: 50,
    layout: { topStart: null, topEnd: null, bottomStart: paged ? "info" : null, bottomEnd: paged ? "paging" : null },
    language: { searchBuilder: { title: { 0: "", _: "" }, add: "Add a condition", clearAll: "Clear" } },
  });
  const complete = (line) => columns.every((c) => !isFigure(c) || plain(line, c) !== null);
  view.table.search.fixed("complete", (_text, line) => !at("complete").checked || complete(line));
  view.table.search.fixed("clean", (_text, line) => !at("clean").checked || !line.flags.length);
  view.table.on("draw", told);
  const builder = new DataTable.SearchBuilder(view.table, { depthLimit: 1, orthogonal: { display: "filter", search: "filter" } });
  at("builder").replaceChildren(builder.getNode()[0]);
  at("notes").replaceChildren(...notes.map((line) => node("li", {}, line)));
  showFigures();
  told();
  tellChosen();
}

function showFigures() {
  const { figures } = tab();
  at("figures").hidden = !figures.length;
  const drawnNow = at("figures").open ? figures : [];
  at("figures").lastElementChild.replaceChildren(...drawnNow.map(({ title, url }) => node("img", { src: url, alt: title })));
}

/* What is shown, in words and in the address */
const search = () => view.table.search();
const conditions = () => (view.table.searchBuilder.getDetails().criteria || []).filter((c) => c.condition);

function told() {
  const { recordsDisplay: some, recordsTotal: all } = view.table.page.info();
  const parts = [
    ...(search() ? [`“${search()}”`] : []),
    ...(at("complete").checked ? ["only complete lines"] : []),
    ...(at("clean").checked ? ["no flags"] : []),
    ...conditions().map((c) => `${c.data || "group"} ${c.condition} ${(c.value || []).join(" to ")}`),
  ];
  const all_ = node("button", { type: "button", onclick: showAll }, "Show all");
  at("state").replaceChildren(`${some} of ${all} lines`, ...(parts.length ? [": ", node("b", {}, parts.join(", ")), " ", all_] : []));
  if (!view.restoring) history.replaceState(null, "", `#${fragment()}`);
}

function showAll() {
  at("search").value = "";
  at("complete").checked = at("clean").checked = false;
  view.table.searchBuilder.rebuild({});
  view.table.search("").draw();
}

function fragment() {
  const [place, way] = view.table.order()[0] || [];
  const found = view.table.searchBuilder.getDetails();
  const said = {
    task: tab().key,
    sort: way ? `${tab().columns[place].key} ${way}` : "",
    search: search(),
    complete: at("complete").checked ? "1" : "",
    clean: at("clean").checked ? "1" : "",
    filter: conditions().length ? JSON.stringify(found) : "",
    compare: at("paired").open ? view.chosen.join(" ") : "",
  };
  return String(new URLSearchParams(Object.entries(said).filter(([, value]) => value)));
}

function restore() {
  const said = new URLSearchParams(location.hash.slice(1));
  view.restoring = true;
  open(Math.max(0, data.tabs.findIndex((t) => t.key === said.get("task"))));
  at("search").value = said.get("search") || "";
  at("complete").checked = said.has("complete");
  at("clean").checked = said.has("clean");
  const [, key, way] = (said.get("sort") || "").match(/^(.*) (asc|desc)$/) || [];
  const place = tab().columns.findIndex((c) => c.key === key);
  if (place >= 0) view.table.order([[place, way]]);
  view.table.search(at("search").value);
  try {
    const filter = JSON.parse(said.get("filter") || "{}");
    if (filter.criteria) view.table.searchBuilder.rebuild(filter);
  } catch (error) {
    console.info("the address holds a filter that cannot be read", error.message);
  }
  view.table.draw();
  view.restoring = false;
  for (const line of (said.get("compare") || "").split(" ")) choose(line, true);
  if (said.has("compare") && view.chosen.length === 2) compare();
  told();
}

/* Export of what is shown, or of the chosen lines */
function selection() {
  const rows = view.table.rows({ search: "applied", order: "applied" }).data().toArray();
  const chosen = rows.filter((line) => view.chosen.includes(line.key));
  return (chosen.length ? chosen : rows).map((line) => {
    const flat = { task: tab().title };
    for (const column of tab().columns) {
      if (!isFigure(column)) {
        flat[column.title] = plain(line, column);
        continue;
      }
      const entry = line.entries[column.key] || {};
      flat[column.kind === "bytes" ? `${column.title}, bytes` : column.title] = entry.value ?? null;
      if (column.kind !== "rate") continue;
      for (const part of ["low", "high", "n", "unscored"]) {
        flat[`${column.title} ${part}`] = entry[part] ?? (part === "unscored" && entry.n ? 0 : null);
      }
    }
    return flat;
  });
}

/* A spreadsheet takes text that begins so for a formula. */
const guarded = (value) => (typeof value === "string" && /^[=+\-@]/.test(value) ? `'${value}` : value ?? "");
function separated(separator, quote) {
  const lines = selection();
  const header = Object.keys(lines[0] || {});
  const rows = [header, ...lines.map((line) => header.map((name) => line[name]))];
  return rows.map((row) => row.map((value) => quote(String(guarded(value)))).join(separator) + "\n").join("");
}
const csv = () => separated(",", (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text));
const json = () => JSON.stringify(selection(), null, 1);

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  node("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function copy() {
  const text = separated("\t", (part) => part.replaceAll("\t", " "));
  try {
    await navigator.clipboard.writeText(text);
    at("copy").textContent = "Copied";
  } catch {
    save("leaderboard.tsv", "text/tab-separated-values", text);
  }
  setTimeout(() => { at("copy").textContent = "Copy"; }, 2000);
}

/* Two lines, compared on the same prompts */
function choose(key, on) {
  view.chosen = view.chosen.filter((other) => other !== key);
  if (on && tab().lines.some((line) => line.key === key)) view.chosen = [...view.chosen, key].slice(-2);
  document.querySelectorAll("#lines input[data-key]").forEach((box) => {
    box.checked = view.chosen.includes(box.dataset.key);
  });
  tellChosen();
}

const chosenLines = () => view.chosen.map((key) => tab().lines.find((line) => line.key === key));
const called = (line) => tab().columns.filter((c) => c.kind === "text").map((c) => line.names[c.key]).join(" ");

function tellChosen() {
  at("chosen").hidden = !view.chosen.length;
  at("compare").disabled = view.chosen.length !== 2;
  at("chosen-names").textContent = chosenLines().map(called).join(" and ") + (view.chosen.length === 1 ? ": choose another" : "");
}

/* Tango's score interval and the exact McNemar test, as bench.report.statistics has them. */
const Z = 1.959963984540054;

function upper(b, c, n) {
  if (b === n) return 1;
  const excess = (delta) => {
    const linear = (2 * n - b + c) * delta - b - c;
    const root = Math.sqrt(Math.max(0, linear ** 2 + 8 * n * c * delta * (1 - delta)));
    const variance = (root - linear) / (2 * n) + delta * (1 - delta);
    return n * delta - (b - c) - Z * Math.sqrt(n * Math.max(0, variance));
  };
  let [low, high] = [(b - c) / n, 1];
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (excess(middle) < 0) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

function mcnemar(b, c) {
  const n = b + c;
  let term = -n * Math.LN2, sum = 0;
  for (let k = 0; k <= Math.min(b, c); k++) {
    sum += Math.exp(term);
    term += Math.log((n - k) / (k + 1));
  }
  return Math.min(1, 2 * sum);
}

/* Of two lists of outcomes: how much more often the first is erased than the second. */
function paired(first, second) {
  const both = [...first].map((one, i) => [one, second[i], i]).filter(([a, b]) => a !== "?" && b !== "?");
  const onlyFirst = both.filter(([a, b]) => a === "0" && b === "1").map(([, , i]) => i);
  const onlySecond = both.filter(([a, b]) => a === "1" && b === "0").map(([, , i]) => i);
  const [b, c, n] = [onlyFirst.length, onlySecond.length, both.length];
  if (!n) return null;
  return { onlyFirst, onlySecond, n, value: (b - c) / n, low: -upper(c, b, n), high: upper(b, c, n), p: mcnemar(b, c) };
}

const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;
const probability = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));

function differenceBar(d) {
  const x = (value) => (60 + 56 * value).toFixed(1);
  const line = (kind, from, to, y1 = 7, y2 = 7) => drawn("line", { class: kind, x1: x(from), x2: x(to), y1, y2 });
  return drawn("svg", { class: "difference", viewBox: "0 0 120 14", "aria-hidden": "true" }, line("track", -1, 1),
    line("band", d.low, d.high), line("reference", 0, 0, 0, 14), drawn("circle", { class: "dot", cx: x(d.value), cy: 7, r: 3 }));
}

function comparedRow(column, first, second, ids) {
  const d = paired(first.outcomes[column.key], second.outcomes[column.key]);
  if (!d) return node("tr", {}, node("th", { scope: "row" }, column.title), node("td", { colspan: 6 }, "no prompt was judged in both"));
  const list = (places, line) => {
    const cell = line.entries[column.key].cell;
    const link = (id) => (cell ? node("a", { href: `cells/${cell}.html#${encodeURIComponent(`p-${id}`)}` }, id) : node("span", {}, id));
    return places.flatMap((place) => [link(ids[place]), " "]);
  };
  const which = node("details", {}, node("summary", {}, `${d.onlyFirst.length} : ${d.onlySecond.length}`),
    node("p", {}, `Erased only by ${called(first)}: `, ...(d.onlyFirst.length ? list(d.onlyFirst, second) : ["none"])),
    node("p", {}, `Erased only by ${called(second)}: `, ...(d.onlySecond.length ? list(d.onlySecond, first) : ["none"])));
  const number = (text) => node("td", { class: "num" }, text);
  return node("tr", { class: d.p < 0.05 ? "differs" : "" }, node("th", { scope: "row" }, column.title),
    number(written(first.entries[column.key], "rate")), number(written(second.entries[column.key], "rate")),
    node("td", {}, differenceBar(d), node("span", { class: "exact" }, `${signed(d.value)} [${signed(d.low)}, ${signed(d.high)}]`)),
    number(String(d.n)), node("td", {}, which), number(probability(d.p)));
}

function compare() {
  const [first, second] = chosenLines();
  const title = node("h2", { id: "paired-title" }, `${called(first)} against ${called(second)}`);
  const shut = node("button", { type: "button", class: "shut", onclick: () => at("paired").close() }, "Close");
  const shared = tab().columns.filter((c) => first.outcomes[c.key] && second.outcomes[c.key]);
  const parts = [title, shut];
  if (first.prompts !== second.prompts) {
    parts.push(node("p", {}, "These two were measured on different prompts, so they cannot be compared prompt by prompt."));
  } else {
    const ids = tab().prompts[first.prompts];
    const heads = ["", called(first), called(second), "difference, 95 %", "N", "only one erased", "p"];
    const table = node("table", {}, node("thead", {}, node("tr", {}, ...heads.map((h) => node("th", { scope: "col" }, h)))),
      node("tbody", {}, ...shared.map((column) => comparedRow(column, first, second, ids))));
    parts.push(node("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Comparison" }, table));
    parts.push(node("p", { class: "quiet" }, "Concept erasing rates on the same prompts; right of the line the first is better. " +
      "Interval: Tango's score interval. p: McNemar's exact test of this pair alone, not corrected for looking at many pairs. " +
      "“only one erased”: prompts on which only the first, only the second erases; open it to see which."));
  }
  at("paired").replaceChildren(...parts);
  at("paired").showModal();
  told();
}

/* What people do */
const buttons = [...document.querySelectorAll("[role=tab]")];
const turn = (i) => { showNothing(); open(i); };
const showNothing = () => { at("search").value = ""; at("complete").checked = at("clean").checked = false; };
buttons.forEach((button, i) => {
  button.addEventListener("click", () => turn(i));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (i + step + buttons.length) % buttons.length;
    turn(next);
    buttons[next].focus();
  });
});
at("search").addEventListener("input", (event) => view.table.search(event.target.value).draw());
for (const id of ["complete", "clean"]) at(id).addEventListener("change", () => view.table.draw());
at("csv").addEventListener("click", () => save("leaderboard.csv", "text/csv", csv()));
at("json").addEventListener("click", () => save("leaderboard.json", "application/json", json()));
at("copy").addEventListener("click", copy);
at("compare").addEventListener("click", compare);
at("clear").addEventListener("click", () => view.chosen.slice().forEach((key) => choose(key, false)));
at("paired").addEventListener("close", told);
at("figures").addEventListener("toggle", showFigures);
addEventListener("hashchange", restore);
if (data.tabs.length) restore();
}
