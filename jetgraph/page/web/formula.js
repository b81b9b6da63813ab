/** Formulas: `w[L3.mlp]*J[L3.mlp, ~1](x)` as MathML. */

const MATHML = "http://www.w3.org/1998/Math/MathML";

function math(name, ...inside) {
  const made = document.createElementNS(MATHML, name);
  made.append(...inside);
  return made;
}

/** Where the bracket that opens at a place closes. */
function closing(text, open) {
  const [left, right] = text[open] === "[" ? "[]" : "()";
  for (let at = open, depth = 0; at < text.length; at++) {
    depth += (text[at] === left) - (text[at] === right);
    if (depth === 0) return at;
  }
  return text.length;
}

/** A letter with the site that it is of, and its order. */
function letter(name, inside) {
  const [, site, order] = /^(.*?)(?:, (~?\d+))?$/su.exec(inside);
  const below = math("mtext", site);
  if (order === undefined) return math("msub", math("mi", name), below);
  const above = order.startsWith("~") ? math("mrow", math("mo", "≤"), math("mn", order.slice(1))) : math("mn", order);
  return math("msubsup", math("mi", name), below, above);
}

/** A product of letters and functions, as elements. */
function product(text) {
  const found = [];
  let at = 0;
  while (at < text.length) {
    const open = text.slice(at).search(/[[*(]/u);
    const stop = open < 0 ? text.length : at + open;
    const name = text.slice(at, stop);
    at = stop;
    if (text[at] === "[") {
      const close = closing(text, at);
      found.push(letter(name, text.slice(at + 1, close)));
      at = close + 1;
    } else if (name) {
      found.push(name.length === 1 ? math("mi", name) : math("mtext", name));
    }
    if (text[at] === "(") {
      const close = closing(text, at);
      found.push(math("mo", "("), ...product(text.slice(at + 1, close)), math("mo", ")"));
      at = close + 1;
    } else if (text[at] === "*") {
      at++;
    }
  }
  return found;
}

/** A formula as an element. */
export const formulaOf = (text) => math("math", math("mrow", ...product(text)));
