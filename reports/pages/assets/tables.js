// Tables: sorting, filters, columns, and the CSV of what is shown.

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

function setUpSorting(table) {
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.querySelector("button.sort"));
  if (heads.length === 0) return;
  for (const head of heads) {
    head.setAttribute("aria-sort", "none");
    head.querySelector("button").addEventListener("click", (event) => sort(event.currentTarget));
  }
  views.push({
    write(state) {
      const sorted = heads.find((head) => /ing$/.test(head.getAttribute("aria-sort")));
      if (sorted) state.set(`${table.id}.sort`, `${sorted.cellIndex} ${sorted.getAttribute("aria-sort")}`);
    },
    read(state) {
      const [place, way] = (state.get(`${table.id}.sort`) ?? "").split(" ");
      const button = table.tHead.rows[0].cells[place || -1]?.querySelector("button.sort");
      for (let turn = 0; button && turn < 2 && button.closest("th").getAttribute("aria-sort") !== way; turn += 1) sort(button);
    },
  });
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

function setUpFilter(form) {
  const fields = [...form.querySelectorAll("input, select")];
  const keyOf = (field) => `${form.dataset.table}.${field.dataset.key ?? "search"}`;
  form.addEventListener("input", () => filter(form));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector(".clear").addEventListener("click", () => {
    form.reset();
    filter(form);
  });
  views.push({
    write(state) {
      for (const field of fields) if (field.value !== "") state.set(keyOf(field), field.value);
    },
    read(state) {
      for (const field of fields) field.value = state.get(keyOf(field)) ?? field.value;
      filter(form); // browsers keep what was typed before a reload
    },
  });
}

// --- columns, and the CSV of what is shown ---------------------------------------------------

function quote(text) {
  const safe = /^[=@+\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text; // a spreadsheet would run it
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function save(table, name) {
  const rows = [...table.rows].filter((row) => !row.hidden);
  const shown = (row) => [...row.cells].filter((cell) => !cell.hidden).map((cell) => quote(cell.innerText.trim()));
  const file = new Blob([rows.map((row) => shown(row).join(",") + "\r\n").join("")], { type: "text/csv" });
  const link = make("a", { href: URL.createObjectURL(file), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function setUpColumns(grid) {
  const table = grid.root.querySelector("table.comparison");
  const picker = grid.root.querySelector(".columns > div");
  const boxes = new Map(); // box -> its column's head
  for (const [place, head] of [...table.tHead.rows[0].cells].entries()) {
    const box = make("input", { type: "checkbox", value: place });
    box.checked = true;
    if (place === 0 || head.classList.contains("name")) continue;
    picker.append(make("label", {}, box, ` ${head.innerText.trim()}`));
    boxes.set(box, head.innerText.trim());
  }
  const off = () => [...boxes.keys()].filter((box) => !box.checked);
  function pick() {
    const places = new Set(off().map((box) => Number(box.value)));
    for (const row of table.rows) for (const cell of row.cells) cell.hidden = places.has(cell.cellIndex);
    remember();
  }
  picker.addEventListener("change", pick);
  grid.root.querySelector(".export").addEventListener("click", () => save(table, `${grid.prefix}shown.csv`));
  views.push({
    write(state) {
      if (off().length > 0) state.set(`${grid.prefix}hide`, off().map((box) => boxes.get(box)).join("|"));
    },
    read(state) {
      const hidden = (state.get(`${grid.prefix}hide`) ?? "").split("|");
      for (const [box, title] of boxes) box.checked = !hidden.includes(title);
      pick();
    },
  });
}
