import { inOrder, isEnd } from "./graph.js";

/**
 * Searching: by a part of a name, or by a pattern of paths such as `embed > ** > L3.*@4 > logits`.
 *
 * A pattern is an automaton over the names along a walk: `*` is any one, `**` any chain, also an empty one; `^order`,
 * `~order` and `@position` may be left out.
 */

/** A test of texts for a glob. */
function glob(text) {
  const escaped = text.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*");
  return new RegExp(`^${escaped}$`, "u");
}

/** One element of a pattern, as a test of nodes. */
function element(text) {
  const [, name, order, position] = /^(.*?)([\^~]\d+)?(?:@(\d+))?$/u.exec(text);
  const test = glob(name);
  const last = name === "logits" || name === "output";
  return (node) =>
    (order === undefined || node.hop.endsWith(order)) &&
    (position === undefined || node.position === Number(position)) &&
    ((last && node.role === "target") || [node.alias, node.label, node.path, node.hop].some((one) => test.test(one)));
}

/** The nodes whose names hold a text, or that a glob fits. */
function byName(graph, query) {
  const wanted = query.toLowerCase();
  const fits = query.includes("*") ? element(query) : null;
  const holds = (node) => [node.label, node.alias, node.path, node.token].some((one) => one.toLowerCase().includes(wanted));
  return { nodes: graph.nodes.filter((node) => (fits ? fits(node) : holds(node))), edges: [] };
}

/** The nodes and edges on walks that match a pattern; sets of states are bits of one number. */
function byPattern(graph, query) {
  const parts = query.split(">").map((part) => part.trim());
  if (parts.length > 30) return { nodes: [], edges: [] };
  const tests = parts.map((part) => (part === "**" ? null : element(part)));
  const end = 1 << parts.length;
  const close = (states) => {
    parts.forEach((_, at) => { if (tests[at] === null && states & (1 << at)) states |= 2 << at; });
    return states;
  };
  const isHop = (node) => node.hop !== "" || node.grid;
  const after = (node, states) => {
    if (!isHop(node)) return states;
    let next = node.role === "map" ? states : 0;
    tests.forEach((test, at) => {
      if (states & (1 << at)) next |= test === null ? 1 << at : test(node) ? 2 << at : 0;
    });
    return close(next);
  };
  const order = inOrder(graph.nodes);
  const reached = new Array(graph.nodes.length).fill(0);
  for (const node of order) {
    const states = node.into.reduce((all, edge) => all | reached[edge.from.index], node.role === "source" ? close(1) : 0);
    reached[node.index] = after(node, states);
  }
  const leads = new Array(graph.nodes.length).fill(0);
  for (const node of order.reverse()) {
    if (isEnd(node)) leads[node.index] = end;
    for (const { to } of node.out) {
      for (let bits = 1; bits <= end; bits <<= 1) if (after(to, bits) & leads[to.index]) leads[node.index] |= bits;
    }
  }
  const on = (node) => (reached[node.index] & leads[node.index]) !== 0;
  const passes = (edge) => (after(edge.to, reached[edge.from.index]) & leads[edge.to.index]) !== 0;
  return { nodes: graph.nodes.filter(on), edges: graph.edges.filter(passes) };
}

/** What a search finds. */
export function search(graph, query) {
  const text = query.trim();
  if (!text) return { nodes: [], edges: [] };
  const named = byName(graph, text);
  return text.includes(">") && !named.nodes.length ? byPattern(graph, text) : named;
}
