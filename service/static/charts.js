// Charts: curves over steps, bars beside a yardstick, a confusion matrix, and a heat map of all heads.

import { el, number, svg } from "./dom.js";

const FEW_CLASSES = 8; // of more, their names stand upright above the columns
const COLOURS = 5; // defined in style.css as line-0, line-1, …
const W = 460;
const H = 190;
const PAD = { left: 46, right: 10, top: 10, bottom: 24 };

function extent(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function ticks([low, high], count) {
  const rough = (high - low) / count;
  const base = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * base).find((step) => step >= rough);
  const found = [];
  for (let at = Math.ceil(low / size); at * size <= high; at += 1) found.push(at * size);
  return found;
}

const label = (value) => String(Number(value.toPrecision(6)));

// Draw lines {name, points: [[step, value], …]} with axes and a legend.
export function curve(title, lines) {
  const points = lines.flatMap((line) => line.points);
  const xs = [0, Math.max(1, ...points.map(([step]) => step))];
  const ys = extent(points.map(([, value]) => value));
  const x = (step) => PAD.left + ((step - xs[0]) / (xs[1] - xs[0])) * (W - PAD.left - PAD.right);
  const y = (value) => H - PAD.bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (H - PAD.top - PAD.bottom);
  const grid = ticks(ys, 5).map((value) => [
    svg("line", { x1: PAD.left, x2: W - PAD.right, y1: y(value), y2: y(value), class: "grid-line" }),
    svg("text", { x: PAD.left - 6, y: y(value) + 4, "text-anchor": "end" }, label(value)),
  ]);
  const steps = ticks(xs, 6).map((value) =>
    svg("text", { x: x(value), y: H - 6, "text-anchor": "middle" }, label(value)),
  );
  const drawn = lines.map(({ name, points: own }, index) => {
    const colour = `line-${index % COLOURS}`;
    const path = own.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const last = own[own.length - 1];
    return [
      svg("polyline", { points: path, class: `curve ${colour}` }),
      svg(
        "circle",
        { cx: x(last[0]), cy: y(last[1]), r: 3, class: `dot ${colour}` },
        svg("title", {}, `${name} ${number(last[1])} at step ${last[0]}`),
      ),
    ];
  });
  const legend = lines.map(({ name, points: own }, index) =>
    el(
      "span",
      { class: `legend line-${index % COLOURS}` },
      `${name === title ? "" : name} ${number(own[own.length - 1][1])}`,
    ),
  );
  return el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, title), " ", legend),
    svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} by step` }, grid, steps, drawn),
  );
}

// Ten shades from lowest to highest, defined in style.css.
const shade = (value, low, high) => Math.round((9 * (value - low)) / (high - low || 1));

// Draw one bar for each {name, value} of a metric whose highest value is 1; below 0 it is empty.
export function bars(title, entries) {
  return el(
    "figure",
    { class: "bars" },
    el("figcaption", {}, title),
    entries.map(({ name, value }) =>
      el(
        "div",
        { class: `bar-row bar-${name}` },
        el("span", {}, name),
        el("meter", { min: 0, max: 1, value: Math.max(0, Math.min(1, value)), "aria-label": `${name} ${title}` }),
        el("b", {}, number(value)),
      ),
    ),
  );
}

// Draw a report as a table: the scores of each class, and the confusion matrix if there is one.
export function report(found) {
  return found.confusion ? confusion(found) : labels(found);
}

// Draw the scores of labels of which a row can have several.
function labels({ split, classes, per_class: scores }) {
  const metrics = ["precision", "recall", "f1"];
  const head = (name) => el("th", { scope: "col" }, name);
  return el(
    "figure",
    { class: "confusion many" },
    el(
      "table",
      {},
      el("caption", {}, `${split} split, ${number(classes)} labels`),
      el("thead", {}, el("tr", {}, ["label", ...metrics, "support"].map(head))),
      el(
        "tbody",
        {},
        scores.map((each) =>
          el(
            "tr",
            {},
            el("th", { scope: "row", class: "name", title: each.label }, each.label),
            metrics.map((metric) => el("td", {}, each[metric].toFixed(4))),
            el("td", {}, number(each.support)),
          ),
        ),
      ),
    ),
  );
}

// Draw a report's confusion matrix as a table: a cell is shaded by its share of the row, which is the
// true class; the scores of the class stand beside it. Classes that a report leaves out are the last.
function confusion({ split, classes, per_class: scores, confusion: matrix }) {
  const names = [...scores.map((each) => each.label), ...(matrix.length > scores.length ? ["(others)"] : [])];
  const sum = (counts) => counts.reduce((total, count) => total + count, 0);
  const rows = matrix.map(sum);
  const metrics = ["precision", "recall", "f1"];
  const cell = (count, row, column) => {
    const level = shade(count, 0, rows[row]);
    const text = `${number(count)} of ${number(rows[row])} ${names[row]} predicted as ${names[column]}`;
    return el("td", { class: `cell shade-${level}${level > 5 ? " deep" : ""}`, title: text }, number(count));
  };
  return el(
    "figure",
    { class: `confusion${names.length > FEW_CLASSES ? " many" : ""}` },
    el(
      "table",
      {},
      el("caption", {}, `${split} split, ${number(sum(rows))} rows, ${number(classes)} classes; shaded by the share of the row`),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col", rowspan: 2 }, "true class"),
          el("th", { scope: "colgroup", colspan: metrics.length + 1 }, "scores"),
          el("th", { scope: "colgroup", colspan: names.length }, "predicted as"),
        ),
        el(
          "tr",
          {},
          [...metrics, "rows"].map((name) => el("th", { scope: "col" }, name)),
          names.map((name) => el("th", { scope: "col", class: "name", title: name }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        matrix.map((counts, row) =>
          el(
            "tr",
            {},
            el("th", { scope: "row", class: "name", title: names[row] }, names[row]),
            metrics.map((metric) => el("td", {}, scores[row] ? scores[row][metric].toFixed(4) : "–")),
            el("td", {}, number(rows[row])),
            counts.map((count, column) => cell(count, row, column)),
          ),
        ),
      ),
    ),
  );
}

// Draw layers × heads of a heads document; shaded by the score within the heads that compete (those
// of a layer, or with a budget of the model), selected ringed. The paper's numbers are in the words.
export function heatMap(heads) {
  const score = heads.score === "pagerank" && heads.budget === null ? "importance" : heads.score;
  const whole = heads.layers.flatMap((layer) => layer.values);
  const size = Math.max(10, Math.min(38, Math.floor(456 / heads.num_heads)));
  const left = 34;
  const top = 20;
  const read = el("p", { class: "muted reading", role: "status" }, "Point at a head to read its scores.");
  const layers = heads.layers.toReversed(); // layer 0 at the bottom, as the command line has it
  const cells = layers.flatMap((layer, row) => {
    const rivals = heads.budget === null ? layer.values : whole;
    const known = rivals.filter((value) => value !== null);
    const low = Math.min(...known);
    const high = Math.max(...known);
    return layer.values.map((value, head) => {
      const isSelected = layer.selected.includes(head);
      const text =
        `layer ${layer.layer}, head ${head}: ${score} ${number(value)}, ` +
        (score === "importance" ? "" : `importance ${number(layer.importance[head])}, `) +
        `information richness ${number(layer.information_richness[head])}` +
        (isSelected ? ", selected" : "");
      const tell = () => (read.textContent = text);
      return svg(
        "rect",
        {
          x: left + head * size + 1, y: top + row * size + 1, width: size - 2, height: size - 2,
          rx: 3, tabindex: "0", class: `head shade-${shade(value, low, high)}${isSelected ? " selected" : ""}`,
          "aria-label": text, pointerenter: tell, focus: tell,
        },
        svg("title", {}, text),
      );
    });
  });
  const every = Math.ceil(heads.num_heads / 16);
  const names = [
    ...layers.map((layer, row) =>
      svg("text", { x: left - 6, y: top + row * size + size / 2 + 4, "text-anchor": "end" }, layer.layer),
    ),
    ...Array.from({ length: heads.num_heads }, (_, head) =>
      head % every
        ? null
        : svg("text", { x: left + head * size + size / 2, y: top - 6, "text-anchor": "middle" }, head),
    ),
  ];
  const width = left + heads.num_heads * size + 2;
  const height = top + heads.layers.length * size + 2;
  return el(
    "figure",
    {},
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, class: "heat", role: "group", "aria-label": "heads by layer" },
      names,
      cells,
    ),
    el(
      "figcaption",
      { class: "scale" },
      `${score} within ${heads.budget === null ? "its layer" : "the model"}: low `,
      Array.from({ length: 10 }, (_, step) => el("i", { class: `swatch shade-${step}` })),
      " high · ",
      el("i", { class: "swatch shade-0 selected" }),
      " selected",
    ),
    read,
  );
}
