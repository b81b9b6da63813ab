/** Elements, numbers for people, and what a page holds. */

export const part = (name) => document.getElementById(name);

/** An element; texts are texts, whatever they hold. */
export function make(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...inside.filter((one) => one !== null));
  return made;
}

/** How far below 1 a number is that is 1 but for rounding. */
const ROUNDING = 1e-12;

/** A number for people: as `jetgraph.numbers.rounded`, how far below 1 it is where it is 1 to four digits. */
export function told(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  const near = value < 1 - ROUNDING;
  let text = size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  if (text === "1" && near) text = String(Number(value.toPrecision(6)));
  if (text === "1" && near) text = `1-${(1 - value).toExponential(1)}`;
  return text.replaceAll("-", "−");
}

/** A share in percent, as `jetgraph.numbers.percent`: with one more place where it is nearly nothing, or all. */
export function percent(share) {
  if (share === null) return "";
  const value = 100 * share;
  const places = Math.abs(value) < 10 || value.toFixed(1) === "100.0" ? 2 : 1;
  const text = (number) => `${number.toFixed(places)} %`.replaceAll("-", "−");
  const rounded = text(value);
  if (share !== 0 && Math.abs(value) < 0.005) return share > 0 ? `<${text(0.01)}` : `>${text(-0.01)}`;
  return rounded === text(100) ? (share < 1 - ROUNDING ? `>${text(99.99)}` : "100.0 %") : rounded;
}

/** A count, by thousands. */
export const counted = (number) => number.toLocaleString("en");

/** What a block of the page holds, which is compressed. */
export async function unpacked(name) {
  const bytes = Uint8Array.from(atob(part(name).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** Open a page; where that cannot be, say so. */
export function openWith(start) {
  start().catch((error) => {
    part("said").textContent = part("title").textContent = `This page cannot be shown: ${error.message}. It needs a browser of 2023 or later.`;
    throw error;
  });
}
