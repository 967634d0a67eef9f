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

  function command(stage) {
    if (!stage?.command) return make("p", { class: "small" }, "The rows do not say which file asked for it.");
    const text = make("pre", { tabindex: "0" }, stage.command);
    const copy = make("button", { type: "button", class: "plain copy" }, "Copy");
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(stage.command);
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
      command(stage),
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
    document.getElementById("provenance-title").textContent = button.dataset.title;
    const content = dialog.querySelector(".content");
    content.replaceChildren(told, ...about, ...parts);
    opener = button;
    dialog.showModal();
    content.scrollTop = 0;
  }

  dialog.addEventListener("close", () => opener?.focus());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });

  // --- what listens ----------------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.classList.contains("sort")) sort(button);
    if (button?.classList.contains("number")) show(button);
  });
  for (const form of document.querySelectorAll("form.filters")) {
    form.addEventListener("input", () => filter(form));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.querySelector(".clear").addEventListener("click", () => {
      form.reset();
      filter(form);
    });
    filter(form); // browsers keep what was typed before a reload
  }
  for (const button of document.querySelectorAll("button.sort")) button.closest("th").setAttribute("aria-sort", "none");
})();
