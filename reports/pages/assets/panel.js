// The panel: what stands behind a number, and two rows beside each other.

// --- provenance ------------------------------------------------------------------------------

const dialog = document.getElementById("provenance");
let opener = null;

function facts(pairs) {
  return make("dl", {}, ...pairs.map(([name, words]) => make("div", {}, make("dt", {}, name), make("dd", {}, words))));
}

// The stage of a number first, then what it was made from, each once.
function chain(stages, key) {
  const found = [];
  for (const queue = [key]; queue.length > 0; ) {
    const next = queue.shift();
    if (found.includes(next)) continue;
    found.push(next);
    queue.push(...(stages[next]?.inputs ?? []));
  }
  return found;
}

function link(stages, key) {
  const stage = stages[key];
  const name = make("b", {}, stage?.name ?? "Stage");
  const code = make("code", {}, key.slice(0, 8));
  if (!stage) return make("li", {}, name, " ", code, " not in this export");
  const cost = [stage.time, stage.memory, stage.commit && `commit ${stage.commit}`].filter(Boolean);
  const said = cost.length > 0 ? cost.join(" · ") : "rebuilt in memory when it is needed";
  const summary = make("summary", {}, name, " ", code, make("span", { class: "cost" }, said));
  return make("li", {}, make("details", {}, summary, facts([["Key", key], ...stage.facts, ...stage.settings])));
}

function command(said) {
  if (!said) return make("p", { class: "small" }, "The rows do not say which file asked for it.");
  const text = make("pre", { tabindex: "0" }, said);
  const copy = make("button", { type: "button", class: "plain copy" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(said);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      copy.textContent = "Selected";
    }
  });
  return make("div", { class: "command" }, text, copy);
}

function measurement(grid, row) {
  const stages = grid.data.stages;
  const stage = stages[row.key];
  const known = data.labels.map((label, i) => [label, row.facts[i]]).filter(([, words]) => words !== null);
  const stale = row.stale === null ? [] : [make("p", { class: "warning" }, `Stale: ${row.stale}`)];
  return [
    ...stale,
    facts(known),
    make("h4", {}, "To compute it again"),
    command(row.command),
    make("h4", {}, "How it was computed"),
    stage ? facts(stage.facts) : make("p", { class: "small" }, "provenance.jsonl has no line for it."),
    make("h4", {}, "What it was made from"),
    make("ol", { class: "chain" }, ...chain(stages, row.key).map((key) => link(stages, key))),
  ];
}

// Seeds of one deterministic model share a stage: one measurement that stands for several cells.
function distinct(rows) {
  const found = new Map();
  for (const row of rows) {
    const same = JSON.stringify([row.key, row.task]);
    if (found.has(same)) found.get(same).seeds.push(row.seed);
    else found.set(same, { row, seeds: [row.seed] });
  }
  return [...found.values()];
}

// The measurements behind a number of a table.
function behind(grid, button) {
  return button.dataset.behind.split(" ").filter(Boolean).map((number) => grid.data.rows[Number(number)]);
}

function show(grid, button) {
  const rows = distinct(behind(grid, button));
  const told = make("p", { class: "told" }, make("strong", {}, button.textContent));
  if ("average" in button.dataset) told.append(" Mean over the tasks of a model, then over models; made of these measurements:");
  else if (rows.length > 1) told.append(` Over ${rows.length} models; made of these measurements:`);
  const about = button.dataset.about ? [make("p", { class: "small" }, button.dataset.about)] : [];
  const parts = rows.map(({ row, seeds }) => {
    if (rows.length === 1) {
      const shared = seeds.length > 1 ? [make("p", { class: "small" }, `One model, the same for seeds ${seeds.join(", ")}.`)] : [];
      return make("div", {}, ...shared, ...measurement(grid, row));
    }
    const seed = seeds.length > 1 ? ` (one model for seeds ${seeds.join(", ")})` : "";
    const part = make("details", { class: "part" }, make("summary", {}, row.title + seed, make("span", { class: "cost" }, row.shown)));
    part.addEventListener("toggle", () => part.append(...measurement(grid, row)), { once: true });
    return part;
  });
  open(button.dataset.title, [told, ...about, ...parts], button);
}

function open(title, parts, button) {
  document.getElementById("provenance-title").textContent = title;
  const content = dialog.querySelector(".content");
  content.replaceChildren(...parts);
  opener = button;
  dialog.showModal();
  content.scrollTop = 0;
}

dialog.addEventListener("close", () => {
  opener?.focus();
  remember();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest(".close")) dialog.close();
});

// --- two rows beside each other --------------------------------------------------------------

// Of a row: task -> seed -> its measurement.
function measurements(grid, row) {
  const found = new Map();
  for (const button of row.querySelectorAll("button.number:not([data-average])")) {
    for (const each of behind(grid, button)) {
      if (!found.has(each.task)) found.set(each.task, new Map());
      found.get(each.task).set(each.seed, each);
    }
  }
  return found;
}

// Seeds that both have, else the one model that either has.
function pairs(one, other) {
  const both = [...one.keys()].filter((seed) => other.has(seed));
  if (both.length > 0) return both.map((seed) => [one.get(seed), other.get(seed)]);
  return one.size === 1 && other.size === 1 ? [[[...one.values()][0], [...other.values()][0]]] : [];
}

function flips(items, paired) {
  const changed = new Map(); // item -> how often gained, lost
  for (const [left, right] of paired) {
    const [before, after] = [items[left.items], items[right.items]];
    if (!before || !after || before.scores.length !== after.scores.length) return null;
    if (JSON.stringify(before.numbers) !== JSON.stringify(after.numbers)) return null;
    for (let place = 0; place < before.scores.length; place += 1) {
      if (before.scores[place] === after.scores[place]) continue;
      const item = before.numbers ? before.numbers[place] : place;
      const count = changed.get(item) ?? [0, 0];
      count[after.scores[place] === "1" ? 0 : 1] += 1;
      changed.set(item, count);
    }
  }
  return changed;
}

function compareTask(items, one, other) {
  const paired = pairs(one, other);
  const title = [...one.values()][0].title.split(" · ").pop();
  const part = make("div", {}, make("h4", {}, title));
  const shown = paired.map(([left, right]) => `${left.shown} → ${right.shown}${paired.length > 1 ? ` (seed ${left.seed})` : ""}`);
  part.append(make("p", {}, shown.join("; ") || "No seed that both have."));
  const changed = paired.length > 0 ? flips(items, paired) : null;
  if (changed === null) {
    if (paired.length > 0) part.append(make("p", { class: "small" }, "Its items are not right or wrong, not the same in both, or not in this page."));
    return part;
  }
  const [gained, lost] = [0, 1].map((side) => [...changed.values()].reduce((sum, count) => sum + count[side], 0));
  part.append(make("p", {}, `${gained} became right, ${lost} became wrong${paired.length > 1 ? `, over ${paired.length} seeds` : ""}.`));
  const listed = [...changed].sort((a, b) => a[0] - b[0]).map(([item, [right, wrong]]) => {
    const said = [right && `right${right > 1 ? ` × ${right}` : ""}`, wrong && `wrong${wrong > 1 ? ` × ${wrong}` : ""}`];
    return make("li", { class: wrong === 0 ? "near" : right === 0 ? "far" : "" }, `item ${item}: ${said.filter(Boolean).join(", ")}`);
  });
  if (listed.length > 0) part.append(make("details", {}, make("summary", {}, "Items that flipped"), make("ul", { class: "flipped" }, ...listed)));
  return part;
}

function nameOf(row) {
  return `${row.querySelector("th").innerText.trim()}, ${row.dataset.bits} bits`;
}

function setUpComparison(grid) {
  const rows = unsorted.get(grid.root.querySelector("table.comparison"));
  const selects = [...grid.root.querySelectorAll("select.one, select.other")];
  const button = grid.root.querySelector(".compare");
  function compare() {
    const pair = selects.map((select) => rows[select.selectedIndex]);
    const [one, other] = pair.map((row) => measurements(grid, row));
    const tasks = [...one.keys()].filter((task) => other.has(task));
    const note = "From the first row to the second, seed by seed. The records hold the number of each item in its task and its score; its question and the answers are the task's own.";
    const parts = tasks.map((task) => compareTask(grid.data.items, one.get(task), other.get(task)));
    open(pair.map(nameOf).join(" → "), [make("p", { class: "small" }, note), ...parts], button);
    remember();
  }
  for (const [side, select] of selects.entries()) {
    select.append(...rows.map((row) => make("option", {}, nameOf(row))));
    select.selectedIndex = Math.min(side, rows.length - 1);
  }
  button.addEventListener("click", compare);
  views.push({
    write(state) {
      if (dialog.open && opener === button) state.set(`${grid.prefix}compare`, selects.map((select) => select.selectedIndex).join(" "));
    },
    read(state) {
      const places = (state.get(`${grid.prefix}compare`) ?? "").split(" ").map(Number);
      if (places.length !== 2 || !places.every((place) => rows[place])) return;
      for (const [side, select] of selects.entries()) select.selectedIndex = places[side];
      compare();
    },
  });
}
