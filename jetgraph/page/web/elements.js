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

/** A number for people. */
export function told(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  const text = size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("-", "−");
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
