"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;

function styled(layout) {
  const of = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const axis = { gridcolor: of("--line"), linecolor: of("--line"), zerolinecolor: of("--line") };
  const hover = { bgcolor: of("--raised"), bordercolor: of("--line"), font: { color: of("--text") } };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: of("--text") };
  const ground = "rgba(0,0,0,0)";
  const template = {
    layout: { font, xaxis: axis, yaxis: axis, hoverlabel: hover, paper_bgcolor: ground, plot_bgcolor: ground },
  };
  return { ...layout, template };
}

function draw() {
  const settings = { responsive: true, displayModeBar: false, displaylogo: false };
  for (const element of document.querySelectorAll(".chart")) {
    const figure = figures[element.dataset.figure];
    Plotly.react(element, figure.data, styled(figure.layout), settings);
  }
}

function show(theme) {
  root.dataset.theme = theme;
  const button = document.querySelector("button.theme");
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-pressed", String(theme === "dark"));
  draw();
}

const darkness = matchMedia("(prefers-color-scheme: dark)");
document.querySelector("button.theme").addEventListener("click", () =>
  show(root.dataset.theme === "dark" ? "light" : "dark"),
);
darkness.addEventListener("change", () => show(darkness.matches ? "dark" : "light"));
show(darkness.matches ? "dark" : "light");

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const isAscending = header.getAttribute("aria-sort") !== "ascending";
  const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return isAscending ? order : -order;
  });
  table.tBodies[0].append(...rows);
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
