"use strict";
// Text is inserted only through textContent and attributes; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const QUANTITIES = {
  test_entailment: "held-out entailment",
  train_entailment: "train entailment",
  test_fact: "test fact",
  train_fact: "train fact",
};
const ROWS_AT_ONCE = 200;

function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "polyline", "text", "title"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

// Sortable tables: the button in a header cell sorts by data-v; rows without a value stay last.
function sortBy(table, column) {
  const headers = [...table.tHead.rows[0].cells];
  const descending = headers[column].getAttribute("aria-sort") === "ascending";
  headers.forEach((header) => header.removeAttribute("aria-sort"));
  headers[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.v ?? "";
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const numbers = x.trim() !== "" && y.trim() !== "" && isFinite(x) && isFinite(y);
    const order = numbers ? x - y : x.localeCompare(y, "en", { numeric: true });
    return descending ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}

// The search hides both the rows and the sections of runs.
const search = document.getElementById("run-search");
function filterRuns() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of document.querySelectorAll("#run-table tbody tr")) {
    const details = document.getElementById(`run-${row.dataset.run}`);
    const text = details.dataset.text.toLowerCase();
    const keep = words.every((word) => text.includes(word));
    row.hidden = details.hidden = !keep;
    shown += keep;
  }
  for (const group of document.querySelectorAll("details.group:has(details.run)")) {
    group.hidden = !group.querySelector("details.run:not([hidden])");
    if (words.length) group.open = !group.hidden;
  }
  document.getElementById("run-count").textContent = words.length ? `${shown} shown` : "";
}
search.addEventListener("input", filterRuns);

// A run's section is unpacked and drawn when it is first opened.
async function unpack(details) {
  const packed = Uint8Array.from(atob(details.querySelector("script.data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function openRun(details) {
  if (!details.open || details.dataset.drawn) return;
  details.dataset.drawn = "yes";
  const content = details.querySelector(".content");
  content.textContent = "Unpacking ...";
  try {
    const run = await unpack(details);
    content.replaceChildren(...drawRun(run, details.id));
  } catch (error) {
    content.textContent = `This section cannot be shown: ${error.message}`;
  }
}

function drawRun(run, id) {
  const missing = (what) => el("p", { class: "warning" }, `${what} cannot be shown: its file is missing or damaged.`);
  return [
    el("div", { class: "side" },
      el("div", {}, el("h5", {}, "Learning curves"), run.curves ? drawCurves(run.curves) : missing("The curve")),
      el("div", {}, el("h5", {}, "Which answers win"), run.heat ? drawHeat(run.heat) : run.probes ? el("p", {}, "Candidates differ between probes.") : missing("The heatmap"))),
    el("h5", {}, "Probes after the last epoch"),
    run.probes ? drawProbes(run.probes, id) : missing("The probes"),
    el("h5", {}, "Reproduce this run"),
    el("pre", { class: "command", tabindex: 0 }, run.command),
    ...(run.wants ? [el("p", {}, run.wants)] : []),
    fold("Configuration", run.config),
    fold("Versions and machine", run.environment),
  ];
}

function fold(title, text) {
  return el("details", {}, el("summary", {}, title), el("pre", { tabindex: 0 }, text ?? "The file is missing."));
}

function drawCurves({ lines, chance }) {
  const [width, height, left, right, top, bottom] = [590, 300, 44, 180, 12, 40];
  const points = lines.flatMap((line) => line.points);
  const lastEpoch = Math.max(1, ...points.map(([epoch]) => epoch));
  const highest = Math.max(1, chance ?? 0, ...points.map(([, rank]) => rank)) * 1.05;
  const x = (epoch) => left + ((width - left - right) * epoch) / lastEpoch;
  const y = (rank) => height - bottom - ((height - top - bottom) * rank) / highest;
  const last = lines.map((line) => `${line.name} ${line.points.at(-1)[1].toFixed(2)}`).join(", ");
  const label = `Mean rank over epochs; at the end: ${last}`;
  const svg = el("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.append(el("polyline", { class: "axis", points: `${left},${top} ${left},${y(0)} ${width - right},${y(0)}` }));
  const step = highest > 12 ? 5 : highest > 5 ? 2 : 1;
  for (let rank = 0; rank <= highest; rank += step) {
    svg.append(el("text", { x: left - 8, y: y(rank) + 4, "text-anchor": "end" }, rank));
  }
  for (const epoch of new Set([0, Math.round(lastEpoch / 2), lastEpoch])) {
    svg.append(el("text", { x: x(epoch), y: y(0) + 17, "text-anchor": "middle" }, epoch));
  }
  svg.append(el("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "epoch"));
  svg.append(el("text", { x: 12, y: (height - bottom) / 2, transform: `rotate(-90 12 ${(height - bottom) / 2})`, "text-anchor": "middle" }, "mean rank"));
  const all = chance === null ? lines : [...lines, { name: "chance", quantity: "chance", points: [[0, chance], [lastEpoch, chance]] }];
  all.forEach((line, i) => {
    const look = { class: line.quantity, stroke: line.color };
    svg.append(el("polyline", { ...look, points: line.points.map(([e, r]) => `${x(e)},${y(r)}`).join(" ") }));
    const at = top + 14 + 20 * i;
    const begin = width - right + 10;
    svg.append(el("polyline", { ...look, points: `${begin},${at} ${begin + 26},${at}` }));
    svg.append(el("text", { x: begin + 32, y: at + 4 }, line.name));
  });
  return svg;
}

function drawHeat({ groups, candidates, inUse, target, p }) {
  const head = el("tr", {}, el("th", { scope: "col", class: "plain" }, "taught fact"),
    ...candidates.map((name, i) => el("th", { scope: "col", class: i < inUse ? "plain" : "plain distractor" }, name)));
  const rows = groups.map((group, g) => el("tr", {}, el("th", { scope: "row" }, group),
    ...candidates.map((_, c) => {
      const cell = el("td", { class: target[g] === c ? "right" : null }, p[g][c] < 0.005 ? "" : p[g][c].toFixed(2));
      cell.style.setProperty("--p", p[g][c]);
      return cell;
    })));
  return el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Which answers win" },
    el("table", { class: "heat" },
      el("caption", {}, "Mean probability of each candidate, among candidates, for the test subjects of each group. The right answer is framed; candidates in italics belong to no group."),
      el("thead", {}, head), el("tbody", {}, ...rows)));
}

function probabilities(probe, names, stepsANat) {
  const most = Math.max(...probe.logp);
  const shares = probe.logp.map((value) => Math.exp((value - most) / stepsANat));
  const total = shares.reduce((a, b) => a + b, 0);
  return names
    .map((name, i) => ({ name, share: shares[i] / total, logp: probe.logp[i] / stepsANat }))
    .sort((a, b) => b.logp - a.logp);
}

function drawProbes({ lists, rows, stepsANat, finding }, id) {
  const box = el("input", { type: "search", autocomplete: "off" });
  const asked = [...new Set(rows.map((row) => row.q))];
  const present = [...Object.keys(QUANTITIES).filter((key) => asked.includes(key)), ...asked.filter((key) => !(key in QUANTITIES))];
  const quantity = el("select", {}, el("option", { value: "" }, "all"),
    ...present.map((key) => el("option", { value: key, selected: key === finding }, QUANTITIES[key] ?? key)));
  const wrong = el("input", { type: "checkbox" });
  const count = el("span", { role: "status" });
  const body = el("tbody");
  const more = el("button", { type: "button", class: "plain-button", onclick: () => fill(Infinity) });
  const titles = ["quantity", "prompt", "right answer", "most probable", "rank", "null rank", "rank before"];

  function matching() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    return rows.filter((row) => {
      const text = `${row.prompt} ${row.answer}`.toLowerCase();
      return (!quantity.value || row.q === quantity.value) && (!wrong.checked || row.rank > 0) && words.every((word) => text.includes(word));
    });
  }
  function fill(limit) {
    const found = matching();
    const shown = found.slice(0, limit);
    body.replaceChildren(...shown.map((row) => probeRow(row, lists[row.list], stepsANat)));
    count.textContent = `${found.length} of ${rows.length} probes`;
    more.hidden = shown.length === found.length;
    more.textContent = `Show all ${found.length}`;
  }
  for (const [control, event] of [[box, "input"], [quantity, "change"], [wrong, "change"]]) {
    control.addEventListener(event, () => fill(ROWS_AT_ONCE));
  }
  fill(ROWS_AT_ONCE);
  return el("div", {},
    el("p", { class: "controls" }, el("label", {}, "Search prompts and answers ", box), el("label", {}, "Quantity ", quantity),
      el("label", {}, wrong, " wrong only"), count),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Probes" },
      el("table", { class: "probes", id: `${id}-probes` },
        el("caption", {}, "Probabilities are among the candidates; rank 0 is best. Open a probe to see all candidates and their log-probabilities in nats."),
        el("thead", {}, el("tr", {}, ...titles.map((title, i) => el("th", { scope: "col", class: i > 3 ? "plain number" : "plain" }, title)))),
        body)),
    more);
}

function probeRow(row, names, stepsANat) {
  const candidates = probabilities(row, names, stepsANat);
  const item = (c, exact) => el("li", { class: c.name === row.answer ? "correct" : null },
    exact ? `${c.name} ${c.share.toFixed(3)} (${c.logp.toFixed(2)})` : `${c.name} ${c.share.toFixed(2)}`);
  const fold = el("details", {}, el("summary", {}, candidates.slice(0, 3).map((c) => `${c.name} ${c.share.toFixed(2)}`).join(", ")));
  fold.addEventListener("toggle", () => {
    if (fold.childElementCount === 1) fold.append(el("ol", { class: "all", start: 0 }, ...candidates.map((c) => item(c, true))));
  });
  const number = (value) => el("td", { class: "number" }, value === null ? "" : value);
  return el("tr", {}, el("td", {}, QUANTITIES[row.q] ?? row.q), el("th", { scope: "row" }, `${row.prompt} ...`),
    el("td", {}, row.answer), el("td", {}, fold), number(row.rank), number(row.null), number(row.before));
}

for (const details of document.querySelectorAll("details.run")) {
  details.addEventListener("toggle", () => openRun(details));
}
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    for (let each = target; each; each = each.parentElement.closest("details")) each.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus();
  }
}
window.addEventListener("hashchange", openTarget);
openTarget();

// A served page polls for a new state, and reloads with the same sections open.
const token = document.body.dataset.token;
if (token !== undefined) {
  const name = (details) => details.dataset.text;
  const folds = "details.group, details.run";
  const kept = JSON.parse(sessionStorage.getItem("ocr-eval") ?? "null");
  if (kept) {
    search.value = kept.search;
    filterRuns();
    for (const details of document.querySelectorAll(folds)) details.open = kept.open.includes(name(details));
    window.scrollTo(0, kept.scroll);
  }
  setInterval(async () => {
    try {
      const now = await (await fetch("state")).text();
      if (now === token) return;
      const open = [...document.querySelectorAll(folds)].filter((details) => details.open).map(name);
      sessionStorage.setItem("ocr-eval", JSON.stringify({ search: search.value, open, scroll: window.scrollY }));
      location.reload();
    } catch {
      return; // the server is gone; keep what is shown
    }
  }, 2000);
}
