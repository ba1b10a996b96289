// Draws what the page's JSON says. Nothing is fetched.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// ------------------------------------------------------------------------- charts
const AXIS = {
  gridcolor: "#edf0f5", linecolor: "#d5dbe6", zerolinecolor: "#d5dbe6", automargin: true,
  title: { standoff: 6, font: { size: 12 } },
};
function draw(div) {
  if (div.classList.contains("js-plotly-plot")) return;
  const chart = data.charts[div.id];
  if (chart.height) div.style.minHeight = `${chart.height}px`;
  const legend = Boolean(chart.legend) && chart.traces.length > 1;
  const layout = {
    margin: { l: 44, r: 8, t: legend ? 34 : 10, b: 38 },
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12, color: "#5b6577" },
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "x",
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" }, showlegend: legend,
    ...chart.layout,
    xaxis: { ...AXIS, ...chart.layout.xaxis }, yaxis: { ...AXIS, ...chart.layout.yaxis },
  };
  Plotly.newPlot(div, chart.traces, layout, { responsive: true, displayModeBar: false });
}
$$(".chart").filter((div) => !div.closest("details")).forEach(draw);
$$("details").forEach((d) => d.addEventListener("toggle", () => $$(".chart", d).forEach(draw)));

// ------------------------------------------------------------------------- tabs
function tabs(group, show) {
  const buttons = $$(`.tabs[data-for=${group}] button`);
  const select = (chosen) => {
    buttons.forEach((b) => b.setAttribute("aria-selected", b === chosen));
    show(chosen.dataset.tab);
  };
  buttons.forEach((b) => b.addEventListener("click", () => select(b)));
  if (buttons.length) select(buttons[0]);
}
tabs("gallery", (label) =>
  $$(".gallery").forEach((g) => { g.hidden = g.dataset.set !== label; }));

// --------------------------------------------------------------- periodic table
const mix = (from, to, t) => from.map((c, i) => Math.round(c + (to[i] - c) * t));
const LOW = [238, 242, 252], HIGH = [30, 64, 175], LESS = [194, 84, 22];
const rgb = (c) => `rgb(${c.join(",")})`;
tabs("elements", (label) => {
  const shares = data.elements.shares[label];
  const largest = Math.max(1e-9, ...Object.values(shares).map(Math.abs));
  const signed = Object.values(shares).some((x) => x < 0);
  const percent = (x) => (signed && x > 0 ? "+" : "") + (100 * x).toFixed(Math.abs(x) < 0.0995 ? 1 : 0);
  document.querySelector(".periodic").replaceChildren(
    ...data.elements.cells.map(([symbol, row, column]) => {
      const cell = document.createElement("div"), share = shares[symbol];
      cell.textContent = symbol;
      cell.style.gridArea = `${row > 7 ? row + 1 : row} / ${column}`;
      if (share) {
        const t = Math.sqrt(Math.abs(share) / largest);
        cell.style.background = rgb(mix(LOW, share < 0 ? LESS : HIGH, t));
        cell.style.color = t > (share < 0 ? 0.8 : 0.45) ? "#fff" : "#1d2433";
        const number = document.createElement("small");
        number.textContent = percent(share);
        cell.append(number);
        cell.title = `${symbol}: ${percent(share)} ${signed ? "percentage points" : "%"}`;
      }
      return cell;
    }),
    Object.assign(document.createElement("div"), { className: "gap", style: "grid-area: 8 / 1 / 9 / -1" }));
  const stops = signed ? [LESS, LOW, HIGH] : [LOW, HIGH];
  const unit = signed ? " pp" : " %";
  const bar = document.createElement("i");
  bar.style.background = `linear-gradient(90deg, ${stops.map(rgb).join(",")})`;
  document.querySelector(".scale").replaceChildren(
    signed ? percent(-largest) + unit : "0 %", bar, percent(largest) + unit + ", square-root scale");
});

// ---------------------------------------------------------------- a crystal, in 3D
const dialog = document.getElementById("viewer"), canvas = document.getElementById("canvas");
const open = { set: null, number: 0, spinning: false, cells: 1 };
let viewer = null;

function moved([x, y, z], [dx, dy, dz]) { return { x: x + dx, y: y + dy, z: z + dz }; }

// Where copies of the cell go: half bonds that leave one meet those of the next.
function shifts(edges, n) {
  const vectors = edges.slice(0, 3).map(([start, end]) => end.map((x, i) => x - start[i]));
  return vectors.reduce((found, v) => found.flatMap((shift) =>
    [...Array(n).keys()].map((k) => shift.map((x, i) => x + k * v[i]))), [[0, 0, 0]]);
}

function showScene(crystal) {
  canvas.replaceChildren();
  viewer = null;
  try {
    viewer = $3Dmol.createViewer(canvas, { backgroundAlpha: 0, antialias: true, orthographic: true });
  } catch (error) { /* shown below: the flat picture */ }
  if (!viewer) {
    canvas.append(Object.assign(new Image(), { src: crystal.picture, alt: crystal.formula }));
    document.querySelector(".hint").textContent = "this browser has no WebGL: a flat picture";
    return;
  }
  for (const by of shifts(crystal.edges, open.cells)) {
    const line = ([start, end], radius) =>
      ({ start: moved(start, by), end: moved(end, by), radius, fromCap: 1, toCap: 1 });
    for (const element of crystal.elements) {
      const shape = viewer.addShape({ color: element.color });
      for (const ball of element.balls) shape.addSphere({ center: moved(ball, by), radius: ball[3] });
      for (const stick of element.sticks) shape.addCylinder(line(stick, crystal.stick));
    }
    const cell = viewer.addShape({ color: "#8a93a3" });
    for (const edge of crystal.edges) cell.addCylinder(line(edge, 0.025));
  }
  viewer.zoomTo();
  viewer.zoom(1.5);
  viewer.render();
  if (open.spinning) viewer.spin("y", 0.6);
}

const SUBSCRIPT = (formula) => formula.split(/(\d+(?:\.\d+)?)/).map((part, i) =>
  i % 2 ? Object.assign(document.createElement("sub"), { textContent: part }) : part);

function showCrystal(set, number) {
  const crystals = data.crystals[set];
  Object.assign(open, { set, number: (number + crystals.length) % crystals.length });
  const crystal = crystals[open.number];
  document.getElementById("viewer-title").replaceChildren(...SUBSCRIPT(crystal.formula));
  const fixed = (numbers, digits, unit) => numbers.map((x) => x.toFixed(digits)).join(", ") + unit;
  const facts = [
    ["space group", crystal.space_group],
    ["above hull", crystal.e_above_hull === null ? "unknown" : `${crystal.e_above_hull.toFixed(3)} eV/atom`],
    ["flags", crystal.badges.join(", ") || "none"],
    ["atoms in the cell", crystal.num_atoms],
    ["density", `${crystal.density.toFixed(2)} g/cm³`],
    ["volume", `${crystal.volume.toFixed(1)} Å³/atom`],
    ["a, b, c", fixed(crystal.lengths, 2, " Å")],
    ["α, β, γ", fixed(crystal.angles, 1, "°")],
    ["from", `${set}, crystal ${crystal.index}`],
  ];
  if (typeof crystal.reward === "number") facts.splice(2, 0, ["reward", crystal.reward.toFixed(3)]);
  const table = document.querySelector(".facts table");
  table.replaceChildren();
  for (const [name, value] of facts) {
    const row = table.insertRow(), head = document.createElement("th");
    head.textContent = name;
    row.append(head);
    row.insertCell().textContent = value;
  }
  document.querySelector(".key").replaceChildren(...crystal.elements.map((e) => {
    const item = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = e.color;
    item.append(dot, e.symbol);
    return item;
  }));
  const link = document.getElementById("cif");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([crystal.cif], { type: "chemical/x-cif" }));
  link.download = `${crystal.formula}_${crystal.index}.cif`;
  if (!dialog.open) dialog.showModal();
  showScene(crystal);
}

const actions = {
  previous: () => showCrystal(open.set, open.number - 1),
  next: () => showCrystal(open.set, open.number + 1),
  close: () => dialog.close(),
  reset: () => showCrystal(open.set, open.number),
  cells: (button) => {
    open.cells = 3 - open.cells;
    button.setAttribute("aria-pressed", open.cells > 1);
    showCrystal(open.set, open.number);
  },
  spin: (button) => {
    open.spinning = !open.spinning;
    button.setAttribute("aria-pressed", open.spinning);
    viewer?.spin(open.spinning && "y", 0.6);
  },
};
$$("[data-do]", dialog).forEach((b) => b.addEventListener("click", () => actions[b.dataset.do](b)));
$$(".crystal").forEach((card) =>
  card.addEventListener("click", () => showCrystal(card.dataset.set, Number(card.dataset.number))));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => viewer?.spin(false));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") actions.previous();
  if (event.key === "ArrowRight") actions.next();
});
