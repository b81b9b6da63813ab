import { counted, make, openWith, part, told, unpacked } from "./elements.js";

/** A table and its figure: rows are filtered by a text, and sorted by a click on a column. */

const ROWS = 2000;

/** Whole numbers are texts where they are too large for others, such as numbers of paths. */
const isWhole = (cell) => typeof cell === "string" && /^\d{1,400}$/.test(cell);
/** What a cell says: counts by thousands, other whole numbers, such as ids, with all their digits. */
function textOf(cell, count) {
  const whole = Number.isSafeInteger(cell);
  if (count && (whole || isWhole(cell))) return counted(BigInt(cell));
  if (whole) return String(cell);
  return typeof cell === "number" ? told(cell) : cell === null ? "" : String(cell);
}

const sizeOf = (cell) => (isWhole(cell) ? BigInt(cell) : cell);

/** Numbers, then texts, then nothing, whichever way a column is sorted. */
const rank = (cell) => (typeof cell === "number" || isWhole(cell) ? 0 : cell === null ? 2 : 1);

/** Which of two cells comes first. */
function compare(one, other, down) {
  if (rank(one) !== rank(other)) return rank(one) - rank(other);
  const [a, b] = [sizeOf(one), sizeOf(other)];
  const ahead = rank(one) === 0 ? Number(a > b) - Number(a < b) : String(one).localeCompare(String(other));
  return down ? -ahead : ahead;
}

async function openTable() {
  const data = JSON.parse(await unpacked("data"));
  const rows = data.columns.length ? data.columns[0].map((_, row) => data.columns.map((column) => column[row])) : [];
  let order = { column: -1, down: false };

  function update() {
    const wanted = part("search").value.toLowerCase();
    const found = rows.filter((row) => !wanted || row.some((cell, at) => [false, data.counts[at]].some((count) => textOf(cell, count).toLowerCase().includes(wanted))));
    const { column, down } = order;
    if (column >= 0) found.sort((one, other) => compare(one[column], other[column], down));
    const cells = (row) => row.map((cell, at) => make("td", rank(cell) === 0 ? { class: "number" } : {}, textOf(cell, data.counts[at])));
    part("rows").replaceChildren(...found.slice(0, ROWS).map((row) => make("tr", {}, ...cells(row))));
    part("found").textContent = `${counted(Math.min(found.length, ROWS))} of ${counted(rows.length)} rows`;
    [...part("names").children].forEach((head, number) => {
      const sorted = number === column ? (down ? "descending" : "ascending") : "none";
      head.setAttribute("aria-sort", sorted);
    });
  }
  function sort(column) {
    order = { column, down: column === order.column ? !order.down : rank(rows[0]?.[column] ?? null) === 0 };
    update();
  }

  document.title = part("title").textContent = part("title").title = data.title;
  const kind = (column) => (data.columns[column].some((cell) => rank(cell) === 0) && !data.columns[column].some((cell) => rank(cell) === 1) ? { class: "number" } : {});
  part("names").append(...data.names.map((name, column) => make("th", { scope: "col", ...kind(column) }, make("button", { type: "button", onclick: () => sort(column) }, name))));
  if (data.figure) part("figure").append(make("img", { src: data.figure, alt: `Figure: ${data.title}` }));
  part("note").textContent = data.note;
  part("search").addEventListener("input", update);
  part("theme").addEventListener("click", () => {
    const root = document.documentElement.dataset;
    root.theme = root.theme === "dark" ? "light" : "dark";
  });
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  update();
  document.documentElement.dataset.ready = "yes";
}

openWith(openTable);
