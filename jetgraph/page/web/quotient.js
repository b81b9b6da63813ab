import { counted } from "./elements.js";
import { isEnd } from "./graph.js";

/**
 * What is shown of a graph: nodes that are folded together are one, with the sums of their edges, and what is smaller
 * than a threshold is left out, with its sum.
 */

/** What a node is folded into with others of its block, at its token; empty where it stands alone. */
export const cellOf = (node) => (node.layer && node.grid && node.position >= 0 ? `${node.layer}@${node.position}` : node.layer);

/** All that nodes can be folded into: what at least two have in common. */
export function cellsOf(graph) {
  const seen = new Map();
  for (const node of graph.nodes) seen.set(cellOf(node), (seen.get(cellOf(node)) ?? 0) + 1);
  return new Set([...seen].filter(([cell, number]) => cell && number > 1).map(([cell]) => cell));
}

/** The name of what stands for a node. */
function nameOf(node, state, groupOf) {
  const group = groupOf.get(node.index);
  if (group !== undefined) return `group:${group}`;
  const cell = cellOf(node);
  return cell && state.folded.has(cell) && !state.pinned.has(node.index) ? `fold:${cell}` : `node:${node.index}`;
}

/** The nodes and edges of a graph in which some are folded together. */
export function quotient(graph, state) {
  const groupOf = new Map(state.groups.flatMap((group, number) => group.map((index) => [index, number])));
  const nodes = new Map();
  const standsFor = graph.nodes.map((node) => {
    const name = nameOf(node, state, groupOf);
    if (!nodes.has(name)) nodes.set(name, { name, members: [], into: [], out: [] });
    nodes.get(name).members.push(node);
    return nodes.get(name);
  });
  const edges = new Map();
  for (const edge of graph.edges) {
    const [from, to] = [standsFor[edge.from.index], standsFor[edge.to.index]];
    if (from === to) continue;
    const name = `${from.name} ${to.name}`;
    if (!edges.has(name)) edges.set(name, { name: `edge:${edges.size}`, from, to, value: null, members: [] });
    const sum = edges.get(name);
    sum.members.push(edge);
    if (edge.value !== null) sum.value = (sum.value ?? 0) + edge.value;
  }
  for (const edge of edges.values()) {
    edge.from.out.push(edge);
    edge.to.into.push(edge);
  }
  for (const node of nodes.values()) describe(node);
  return { nodes: [...nodes.values()], edges: [...edges.values()], standsFor };
}

/** What a node of a quotient is called, where it stands, and what it passes on. */
function describe(shown) {
  const [first] = shown.members;
  shown.single = shown.members.length === 1 && shown.name.startsWith("node:");
  if (shown.single) {
    Object.assign(shown, { label: first.label, short: first.short, kind: first.kind, role: first.role });
    Object.assign(shown, { x: first.x, y: first.y, width: first.width, value: first.value });
    return;
  }
  const cell = shown.name.startsWith("fold:") ? shown.name.slice(5) : "";
  const name = cell || `${first.label} + ${counted(shown.members.length - 1)}`;
  Object.assign(shown, { label: name, short: cell ? first.layer : name, role: "fold", width: 8 * name.length + 24 });
  const kinds = new Set(shown.members.map((node) => node.kind).filter((kind) => kind !== "stream" && kind !== "bias"));
  shown.kind = kinds.size === 1 ? [...kinds][0] : "";
  // A block that goes on in the next line stands where it begins.
  const beside = shown.members.filter((node) => first.grid || Math.abs(node.y - first.y) < 120);
  shown.x = beside.reduce((sum, node) => sum + node.x, 0) / beside.length;
  shown.y = beside.reduce((sum, node) => sum + node.y, 0) / beside.length;
  const values = shown.out.map((edge) => edge.value).filter((value) => value !== null);
  shown.value = values.length ? values.reduce((sum, value) => sum + value, 0) : null;
}

/** The largest size of some edges. */
export const largestOf = (edges) => edges.reduce((largest, edge) => Math.max(largest, Math.abs(edge.value ?? 0)), 0);

/** The least size that a slider stands for: nothing at 0, the largest at 100. */
export const leastOf = (slider, largest) => (slider > 0 ? largest * 10 ** (-4 + slider / 25) : 0);

/** Where a slider has to stand for no more edges than a number to be left. */
export function sliderFor(edges, number) {
  if (edges.length <= number) return 0;
  const sizes = edges.map((edge) => Math.abs(edge.value ?? 0)).sort((a, b) => b - a);
  return Math.max(0, Math.min(100, Math.ceil(25 * (4 + Math.log10(sizes[number] / (sizes[0] || 1)))))) || 0;
}

/** What is left out below a threshold: edges, then nodes that none is left of. Pinned ones and ends stay. */
export function threshold(shown, state) {
  const largest = largestOf(shown.edges);
  const least = leastOf(state.threshold, largest);
  const small = least ? shown.edges.filter((edge) => Math.abs(edge.value ?? 0) < least) : [];
  const hiddenEdges = new Set(small);
  const stays = (node) =>
    node.members.some((one) => isEnd(one) || state.pinned.has(one.index)) ||
    [...node.into, ...node.out].some((edge) => !hiddenEdges.has(edge));
  const hiddenNodes = new Set(least ? shown.nodes.filter((node) => !stays(node)) : []);
  const sum = (edges) => edges.reduce((total, edge) => total + (edge.value ?? 0), 0);
  const last = small.filter((edge) => edge.to.members.some(isEnd));
  return { least, hiddenEdges, hiddenNodes, sum: sum(small), atEnd: sum(last) };
}
