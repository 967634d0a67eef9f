// What the other scripts share, what stands in the address, and the start. Text from a grid is only
// ever set as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const grids = [...document.querySelectorAll("[data-grid]")].map((root, place) => ({
  root,
  prefix: root.dataset.grid, // of its ids and of its part of the address
  data: data.grids[place],
}));

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// --- what is shown stands in the address -----------------------------------------------------

const views = []; // write(state): what is chosen; read(state): choose it again
let restoring = true;

function remember() {
  if (restoring) return;
  const state = new URLSearchParams();
  for (const view of views) view.write(state);
  const text = state.toString();
  history.replaceState(null, "", text ? `#${text}` : location.hash.includes("=") ? location.pathname + location.search : location.hash || location.pathname + location.search);
}

function restore() {
  const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const view of views) view.read(state);
  restoring = false;
}

// --- the start -------------------------------------------------------------------------------

for (const form of document.querySelectorAll("form.filters")) setUpFilter(form);
for (const table of unsorted.keys()) setUpSorting(table);
for (const grid of grids) {
  setUpColumns(grid);
  for (const figure of grid.root.querySelectorAll("[data-chart]")) setUpChart(grid, figure);
  setUpComparison(grid);
  grid.root.addEventListener("click", (event) => {
    const button = event.target.closest("button.number");
    if (button) show(grid, button);
  });
  grid.root.querySelector(".tools").hidden = false;
}
restore();
