// Sorts and filters the tables, and shows what stands behind a number. Text from the grid is only
// ever set as textContent.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // --- sorting ---------------------------------------------------------------------------------

  const unsorted = new Map([...document.querySelectorAll("table")].map((t) => [t, [...t.tBodies[0].rows]]));

  function keyOf(row, column, numeric) {
    const cell = row.cells[column];
    if ("missing" in cell.dataset) return null;
    if (!numeric) return cell.textContent;
    const number = Number(cell.dataset.sort ?? cell.textContent);
    return Number.isNaN(number) ? null : number;
  }

  function sort(button) {
    const head = button.closest("th");
    const table = head.closest("table");
    const first = button.dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    const now = { none: first, [first]: other, [other]: "none" }[head.getAttribute("aria-sort") ?? "none"];
    for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", each === head ? now : "none");
    const rows = [...unsorted.get(table)];
    if (now !== "none") {
      const sign = now === "ascending" ? 1 : -1;
      const keys = new Map(rows.map((row) => [row, keyOf(row, head.cellIndex, "numeric" in button.dataset)]));
      rows.sort((a, b) => {
        const [left, right] = [keys.get(a), keys.get(b)];
        if (left === null || right === null) return (left === null) - (right === null);  // missing: last
        return sign * (typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true }));
      });
    }
    table.tBodies[0].append(...rows);
    group(table);
    remember();
  }

  // A line above the first row of each number of bits, while the table is in its own order.
  function group(table) {
    const sorted = [...table.tHead.rows[0].cells].some((c) => /ing$/.test(c.getAttribute("aria-sort") ?? ""));
    let above = null;
    for (const row of table.tBodies[0].rows) {
      if (row.hidden) continue;
      row.classList.toggle("first", !sorted && above !== null && above !== row.dataset.bits);
      above = row.dataset.bits;
    }
  }

  // --- filters ---------------------------------------------------------------------------------

  function filter(form) {
    const table = document.getElementById(form.dataset.table);
    const words = form.querySelector("input").value.toLowerCase().split(/\s+/);
    const chosen = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
    const rows = unsorted.get(table);
    for (const row of rows) {
      const text = row.dataset.search.toLowerCase();
      row.hidden = !(
        words.every((word) => text.includes(word)) &&
        chosen.every((select) => row.dataset[select.dataset.key] === select.value)
      );
    }
    const shown = rows.filter((row) => !row.hidden).length;
    form.querySelector("output").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
    group(table);
    remember();
  }

  // --- columns, and the CSV of what is shown ---------------------------------------------------

  const comparison = document.getElementById("comparison-table");
  const tools = document.querySelector(".tools");
  const picker = tools.querySelector(".columns > div");
  const heads = [...comparison.tHead.rows[0].cells];

  function pick() {
    const off = new Set([...picker.querySelectorAll("input:not(:checked)")].map((box) => Number(box.value)));
    for (const row of comparison.rows) for (const cell of row.cells) cell.hidden = off.has(cell.cellIndex);
    remember();
  }

  function quote(text) {
    const safe = /^[=@+\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text; // a spreadsheet would run it
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function save() {
    const rows = [...comparison.rows].filter((row) => !row.hidden);
    const shown = (row) => [...row.cells].filter((cell) => !cell.hidden).map((cell) => quote(cell.innerText.trim()));
    const file = new Blob([rows.map((row) => shown(row).join(",") + "\r\n").join("")], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(file), download: "shown.csv" });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // --- two rows beside each other --------------------------------------------------------------

  // Of a row: task -> seed -> its measurement.
  function measurements(row) {
    const found = new Map();
    for (const button of row.querySelectorAll("button.number:not([data-average])")) {
      for (const number of button.dataset.behind.split(" ").filter(Boolean)) {
        const each = data.rows[Number(number)];
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

  function flips(paired) {
    const changed = new Map(); // item -> how often gained, lost
    for (const [left, right] of paired) {
      const [before, after] = [data.items[left.items], data.items[right.items]];
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

  function compareTask(one, other) {
    const paired = pairs(one, other);
    const title = [...one.values()][0].title.split(" · ").pop();
    const part = make("div", {}, make("h4", {}, title));
    const shown = paired.map(([left, right]) => `${left.shown} → ${right.shown}${paired.length > 1 ? ` (seed ${left.seed})` : ""}`);
    part.append(make("p", {}, shown.join("; ") || "No seed that both have."));
    const changed = paired.length > 0 ? flips(paired) : null;
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

  function compare() {
    const rows = [".one", ".other"].map((name) => unsorted.get(comparison)[tools.querySelector(name).selectedIndex]);
    const [one, other] = rows.map(measurements);
    const tasks = [...one.keys()].filter((task) => other.has(task));
    const note = "From the first row to the second, seed by seed. The records hold the number of each item in its task and its score; its question and the answers are the task's own.";
    open(rows.map(nameOf).join(" → "), [make("p", { class: "small" }, note), ...tasks.map((task) => compareTask(one.get(task), other.get(task)))], tools.querySelector(".compare"));
    remember();
  }

  function nameOf(row) {
    return `${row.querySelector("th").innerText.trim()}, ${row.dataset.bits} bits`;
  }

  // --- what is shown stands in the address -----------------------------------------------------

  let restoring = true;

  function remember() {
    if (restoring) return;
    const state = new URLSearchParams();
    for (const form of document.querySelectorAll("form.filters")) {
      for (const field of form.querySelectorAll("input, select")) {
        if (field.value !== "") state.set(`${form.dataset.table}.${field.dataset.key ?? "search"}`, field.value);
      }
    }
    for (const table of unsorted.keys()) {
      const sorted = [...table.tHead.rows[0].cells].find((cell) => /ing$/.test(cell.getAttribute("aria-sort") ?? ""));
      if (sorted && table.id) state.set(`${table.id}.sort`, `${sorted.cellIndex} ${sorted.getAttribute("aria-sort")}`);
    }
    const off = [...picker.querySelectorAll("input:not(:checked)")].map((box) => heads[box.value].innerText.trim());
    if (off.length > 0) state.set("hide", off.join("|"));
    const places = [".one", ".other"].map((name) => tools.querySelector(name).selectedIndex);
    if (dialog.open && opener === tools.querySelector(".compare")) state.set("compare", places.join(" "));
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.hash.includes("=") ? location.pathname + location.search : location.hash || location.pathname + location.search);
  }

  function restore() {
    const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const form of document.querySelectorAll("form.filters")) {
      for (const field of form.querySelectorAll("input, select")) {
        const held = state.get(`${form.dataset.table}.${field.dataset.key ?? "search"}`);
        if (held !== null) field.value = held;
      }
      filter(form); // browsers keep what was typed before a reload
    }
    for (const table of unsorted.keys()) {
      const [place, way] = (state.get(`${table.id}.sort`) ?? "").split(" ");
      const button = table.tHead.rows[0].cells[place || -1]?.querySelector("button.sort");
      for (let turn = 0; button && turn < 2 && button.closest("th").getAttribute("aria-sort") !== way; turn += 1) sort(button);
    }
    const off = (state.get("hide") ?? "").split("|");
    for (const box of picker.querySelectorAll("input")) box.checked = !off.includes(heads[box.value].innerText.trim());
    pick();
    const places = (state.get("compare") ?? "").split(" ").map(Number);
    if (places.length === 2 && places.every((place) => unsorted.get(comparison)[place])) {
      [".one", ".other"].forEach((name, side) => { tools.querySelector(name).selectedIndex = places[side]; });
      compare();
    }
    restoring = false;
  }

  // --- provenance ------------------------------------------------------------------------------

  const dialog = document.getElementById("provenance");
  let opener = null;

  function facts(pairs) {
    return make("dl", {}, ...pairs.map(([name, words]) => make("div", {}, make("dt", {}, name), make("dd", {}, words))));
  }

  // The stage of a number first, then what it was made from, each once.
  function chain(key) {
    const found = [];
    for (const queue = [key]; queue.length > 0; ) {
      const next = queue.shift();
      if (found.includes(next)) continue;
      found.push(next);
      queue.push(...(data.stages[next]?.inputs ?? []));
    }
    return found;
  }

  function link(key) {
    const stage = data.stages[key];
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

  function measurement(row) {
    const stage = data.stages[row.key];
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
      make("ol", { class: "chain" }, ...chain(row.key).map(link)),
    ];
  }

  // Seeds of one deterministic model share a stage: one measurement that stands for several cells.
  function distinct(numbers) {
    const found = new Map();
    for (const row of numbers.map((number) => data.rows[number])) {
      const same = JSON.stringify([row.key, row.task]);
      if (found.has(same)) found.get(same).seeds.push(row.seed);
      else found.set(same, { row, seeds: [row.seed] });
    }
    return [...found.values()];
  }

  function show(button) {
    const rows = distinct(button.dataset.behind.split(" ").filter(Boolean).map(Number));
    const told = make("p", { class: "told" }, make("strong", {}, button.textContent));
    if ("average" in button.dataset) told.append(" Mean over the tasks of a model, then over models; made of these measurements:");
    else if (rows.length > 1) told.append(` Over ${rows.length} models; made of these measurements:`);
    const about = button.dataset.about ? [make("p", { class: "small" }, button.dataset.about)] : [];
    const parts = rows.map(({ row, seeds }) => {
      if (rows.length === 1) {
        const shared = seeds.length > 1 ? [make("p", { class: "small" }, `One model, the same for seeds ${seeds.join(", ")}.`)] : [];
        return make("div", {}, ...shared, ...measurement(row));
      }
      const seed = seeds.length > 1 ? ` (one model for seeds ${seeds.join(", ")})` : "";
      const part = make("details", { class: "part" }, make("summary", {}, row.title + seed, make("span", { class: "cost" }, row.shown)));
      part.addEventListener("toggle", () => part.append(...measurement(row)), { once: true });
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

  // --- what listens ----------------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.classList.contains("sort")) sort(button);
    if (button?.classList.contains("number")) show(button);
    if (button?.classList.contains("export")) save();
    if (button?.classList.contains("compare")) compare();
  });
  for (const form of document.querySelectorAll("form.filters")) {
    form.addEventListener("input", () => filter(form));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.querySelector(".clear").addEventListener("click", () => {
      form.reset();
      filter(form);
    });
  }
  for (const button of document.querySelectorAll("button.sort")) button.closest("th").setAttribute("aria-sort", "none");
  for (const [place, head] of heads.entries()) {
    const box = make("input", { type: "checkbox", value: place });
    if (place > 0 && !head.classList.contains("name")) picker.append(make("label", {}, box, ` ${head.innerText.trim()}`));
    box.checked = true;
  }
  picker.addEventListener("change", pick);
  for (const name of [".one", ".other"]) {
    const names = unsorted.get(comparison).map((row) => make("option", {}, nameOf(row)));
    tools.querySelector(name).append(...names);
  }
  tools.querySelector(".other").selectedIndex = Math.min(1, unsorted.get(comparison).length - 1);
  tools.hidden = false;
  restore();
})();
