// Curves, drawn in place of their picture from the numbers in this page. What they are made of is
// described in reports/plots/chart.py. Without this script the picture stays.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = { "-": "none", "--": "6 3", ":": "1.5 2.5", "-.": "6 2.5 1.5 2.5" };
const MARGIN = { left: 46, right: 10, top: 8, bottom: 38 };

function draw(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function show4(value) {
  return value === null ? "not finite" : String(Number(value.toPrecision(4)));
}

// --- scales ----------------------------------------------------------------------------------

function ticksBetween(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9); n += 1) ticks.push(n * step);
  return ticks;
}

function logarithmicTicks(low, high) {
  const parts = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
    for (const part of parts) ticks.push(part * 10 ** power);
  }
  const shown = ticks.filter((tick) => tick >= low && tick <= high);
  return shown.length > 1 ? shown : ticksBetween(low, high, 4);
}

function makeScale(low, high, from, to, logarithmic) {
  const change = logarithmic ? Math.log : (value) => value;
  const [first, last] = [change(low), change(high)];
  return (value) => from + ((change(value) - first) / (last - first)) * (to - from);
}

// The ends of numbers with some room around them; null where there are none.
function findEnds(values, logarithmic) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return null;
  if (low === high) return logarithmic ? [low / 2, high * 2] : [low - 1, high + 1];
  const room = logarithmic ? (high / low) ** 0.04 : 0.04 * (high - low);
  return logarithmic ? [low / room, high * room] : [low - room, high + room];
}

// --- paths -----------------------------------------------------------------------------------

// Points as runs that no gap divides.
function runs(xs, ys) {
  const found = [];
  let run = [];
  for (let place = 0; place < xs.length; place += 1) {
    if (ys[place] === null) run = [];
    else if (run.push([xs[place], ys[place]]) === 1) found.push(run);
  }
  return found;
}

function write(points) {
  return points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");
}

function linePath(xs, ys) {
  return runs(xs, ys).map((run) => `M${write(run.length === 1 ? [run[0], run[0]] : run)}`).join("");
}

function bandPath(xs, low, high) {
  const [below, above] = [runs(xs, low), runs(xs, high)];
  return below.map((run, n) => `M${write(run)}L${write([...above[n]].reverse())}Z`).join("");
}

// --- a panel ---------------------------------------------------------------------------------

// What of a line is seen: its mean, or each of its models.
function curvesOf(line, each) {
  return each ? line.seeds.map(([name, losses]) => ({ name, losses })) : [{ name: null, losses: line.mean }];
}

class Panel {
  constructor(chart, place) {
    Object.assign(this, { chart, place, lines: [], curve: 0, line: null, at: 0 });
    this.svg = draw("svg", { role: "img", "aria-label": `${chart.up}, ${chart.panels[place]}` });
    this.tip = make("div", { class: "tip", role: "status" });
    this.tip.hidden = true;
    const title = make("p", { class: "facet-title" }, make("b", {}, chart.panels[place]), ` ${place === 0 ? chart.up : ""}`);
    this.box = make("div", { class: "facet", tabindex: "0" }, title, this.svg, this.tip);
    this.box.addEventListener("pointermove", (event) => this.follow(event));
    this.box.addEventListener("pointerdown", (event) => this.follow(event));
    this.box.addEventListener("pointerleave", () => this.leave());
    this.box.addEventListener("blur", () => this.leave());
    this.box.addEventListener("keydown", (event) => this.step(event));
  }

  draw(lines, ends, each) {
    const width = this.box.clientWidth;
    if (width === 0) return; // not shown
    const height = Math.round(Math.min(340, Math.max(220, 0.62 * width)));
    Object.assign(this, { lines, each, width });
    this.leave();
    this.svg.replaceChildren();
    for (const [name, size] of [["width", width], ["height", height], ["viewBox", `0 0 ${width} ${height}`]]) this.svg.setAttribute(name, size);
    if (lines.length === 0 || ends === null) {
      this.svg.append(draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "Every row is switched off."));
      return;
    }
    const [left, right] = [MARGIN.left, width - MARGIN.right];
    const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
    const [first, last] = findEnds(lines.flatMap((line) => line.x), false);
    this.x = makeScale(first, last, left, right, false);
    this.y = makeScale(...ends, bottom, top, this.chart.log);
    const grid = draw("g", { class: "axes" });
    for (const tick of this.chart.log ? logarithmicTicks(...ends) : ticksBetween(...ends, 5)) {
      grid.append(draw("line", { x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }));
      grid.append(draw("text", { x: left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, show4(tick)));
    }
    for (const tick of ticksBetween(first, last, width < 420 ? 4 : 7)) {
      grid.append(draw("line", { x1: this.x(tick), x2: this.x(tick), y1: top, y2: bottom }));
      grid.append(draw("text", { x: this.x(tick), y: bottom + 15, "text-anchor": "middle" }, show4(tick)));
    }
    grid.append(draw("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, this.chart.across));
    const drawn = draw("g", { class: "lines" });
    for (const line of lines) drawn.append(this.group(line));
    this.marks = draw("g", { class: "lines" });
    this.svg.append(grid, drawn, this.marks);
  }

  // The paths of one row: band or pale curve below, what is pointed at above.
  group(line) {
    const xs = line.x.map(this.x);
    const ys = (losses) => losses.map((loss) => (loss === null ? null : this.y(loss)));
    const stroke = { stroke: line.colour, "stroke-dasharray": DASHES[line.dash] };
    const made = draw("g", {});
    if (!this.each && line.low.length > 0) made.append(draw("path", { class: "band", fill: line.colour, d: bandPath(xs, ys(line.low), ys(line.high)) }));
    if (!this.each && line.seeds.length === 1) made.append(draw("path", { class: "pale", stroke: line.colour, d: linePath(xs, ys(line.seeds[0][1])) }));
    for (const { losses } of curvesOf(line, this.each)) made.append(draw("path", { ...stroke, d: linePath(xs, ys(losses)) }));
    line.group = made;
    return made;
  }

  // --- what is pointed at

  follow(event) {
    if (!this.x || this.lines.length === 0) return;
    const frame = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    let nearest = Infinity;
    let found = null;
    for (const line of this.lines) {
      let at = 0;
      for (let place = 1; place < line.x.length; place += 1) {
        if (Math.abs(this.x(line.x[place]) - x) < Math.abs(this.x(line.x[at]) - x)) at = place;
      }
      for (const [curve, { losses }] of curvesOf(line, this.each).entries()) {
        if (losses[at] === null) continue;
        const far = Math.hypot(this.x(line.x[at]) - x, this.y(losses[at]) - y);
        if (far < nearest) [nearest, found] = [far, { line, curve, at }];
      }
    }
    if (found) this.point(found);
  }

  step(event) {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0;
    const across = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
    if (event.key === "Escape") this.leave();
    if ((!along && !across) || this.lines.length === 0) return;
    event.preventDefault();
    const all = this.lines.flatMap((line) => curvesOf(line, this.each).map((_, curve) => ({ line, curve })));
    const now = all.findIndex(({ line, curve }) => line === this.line && curve === this.curve);
    const next = all[now < 0 ? 0 : (now + across + all.length) % all.length];
    const at = now < 0 ? 0 : Math.min(next.line.x.length - 1, Math.max(0, this.at + along));
    this.point({ ...next, at });
  }

  leave() {
    this.line = null;
    this.tip.hidden = true;
    this.marks?.replaceChildren();
    for (const line of this.lines) line.group?.classList.remove("faded");
  }

  point({ line, curve, at }) {
    Object.assign(this, { line, curve, at });
    for (const each of this.lines) each.group.classList.toggle("faded", each !== line);
    const loss = curvesOf(line, this.each)[curve].losses[at];
    const x = this.x(line.x[at]);
    this.marks.replaceChildren(draw("line", { class: "guide", x1: x, x2: x, y1: MARGIN.top, y2: this.svg.clientHeight - MARGIN.bottom }));
    if (loss !== null) this.marks.append(draw("circle", { cx: x, cy: this.y(loss), r: 4, fill: line.colour }));
    this.tell();
  }

  tell() {
    const { line, at, chart } = this;
    const tokens = chart.step ? "" : ` · ${line.at[at].toLocaleString("en")} tokens`;
    const several = line.seeds.length > 1;
    const facts = line.seeds.map(([name, losses], n) => [name || "loss", losses[at], this.each ? n === this.curve : !several]);
    if (several || !this.each) facts.unshift([several ? "mean, smoothed" : "smoothed", line.mean[at], !this.each]);
    const told = facts.map(([name, loss, chosen]) => make("div", chosen ? { class: "chosen" } : {}, make("dt", {}, name), make("dd", {}, show4(loss))));
    const title = `${line.name}, ${chart.panels[this.place]}`;
    this.tip.replaceChildren(make("b", {}, title), make("p", {}, `step ${line.steps[at].toLocaleString("en")}${tokens}`), make("dl", {}, ...told));
    this.tip.hidden = false;
    const x = this.x(line.x[at]);
    const wide = this.tip.offsetWidth;
    const place = x > this.width / 2 ? x - wide - 12 : x + 12;
    this.tip.style.left = `${Math.max(0, Math.min(place, this.width - wide))}px`;
  }
}

// --- a chart ---------------------------------------------------------------------------------

function swatch(line) {
  const path = draw("path", { d: "M1,6L25,6", stroke: line.colour, "stroke-dasharray": DASHES[line.dash] });
  return draw("svg", { class: "lines swatch", width: 26, height: 12, "aria-hidden": "true" }, path);
}

function setUpChart(grid, figure) {
  const chart = grid.data.charts[figure.dataset.chart];
  const key = `${grid.prefix}${figure.dataset.chart}`;
  for (const line of chart.lines) line.x = chart.step ? line.steps : line.at.map((each) => each / chart.unit);
  const panels = chart.panels.map((_, place) => new Panel(chart, place));
  const boxes = new Map(); // name of a row -> whether it is shown
  const legend = make("fieldset", { class: "legend" }, make("legend", {}, chart.common || "Rows"));
  for (const line of chart.lines) {
    if (boxes.has(line.name)) continue;
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    boxes.set(line.name, box);
    legend.append(make("label", { title: line.name }, box, swatch(line), line.short));
  }
  const all = make("button", { type: "button", class: "plain" });
  const each = make("input", { type: "checkbox" });
  const several = chart.lines.some((line) => line.seeds.length > 1);
  const choices = make("p", { class: "choices" }, all);
  if (several) choices.append(make("label", {}, each, " every model, as recorded"));
  const facets = make("div", { class: "facets" }, ...panels.map((panel) => panel.box));
  const notes = chart.notes.map((note) => `${note[0].toUpperCase()}${note.slice(1)}.`).join(" ");
  figure.prepend(make("div", { class: "chart" }, facets, legend, choices, make("p", { class: "small" }, notes)));
  figure.querySelector(".picture").hidden = true;

  let drawnAt = null; // the width that the panels are drawn for
  function redraw() {
    drawnAt = facets.clientWidth;
    const shown = chart.lines.filter((line) => boxes.get(line.name).checked);
    const values = shown.flatMap((line) => (each.checked || line.seeds.length === 1 ? line.seeds.flatMap(([, losses]) => losses) : [...line.low, ...line.high]));
    const ends = findEnds(values, chart.log);
    for (const panel of panels) panel.draw(shown.filter((line) => line.panel === panel.place), ends, each.checked);
    all.textContent = shown.length > 0 ? "Switch all off" : "Switch all on";
  }
  function change() {
    redraw();
    remember();
  }
  all.addEventListener("click", () => {
    const on = ![...boxes.values()].some((box) => box.checked);
    for (const box of boxes.values()) box.checked = on;
    change();
  });
  legend.addEventListener("change", change);
  each.addEventListener("change", change);
  new ResizeObserver(() => {
    if (facets.clientWidth !== drawnAt) redraw();
  }).observe(facets);
  views.push({
    write(state) {
      for (const [name, box] of boxes) if (!box.checked) state.append(`${key}.off`, name);
      if (each.checked) state.set(`${key}.each`, "1");
    },
    read(state) {
      const off = state.getAll(`${key}.off`);
      for (const [name, box] of boxes) box.checked = !off.includes(name);
      each.checked = state.has(`${key}.each`);
      redraw();
    },
  });
}
