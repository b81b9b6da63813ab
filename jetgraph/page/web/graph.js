/**
 * A graph as it came: nodes and edges, and which edges each node has.
 *
 * @typedef {{index: number, id: string, label: string, short: string, alias: string, hop: string, kind: string,
 *   role: string, layer: string, path: string, formula: string, token: string, position: number, order: number,
 *   weight: string, value: number|null, share: number|null, influence: number|null, paths: string,
 *   x: number, y: number, width: number, into: Edge[], out: Edge[]}} Node
 * @typedef {{index: number, from: Node, to: Node, value: number|null, role: string, kind: string, formula: string,
 *   way: number[][]}} Edge
 */

/** Objects of a table that is given by column. */
function rows(columns) {
  const names = Object.keys(columns);
  const length = names.length ? columns[names[0]].length : 0;
  return Array.from({ length }, (_, index) => {
    const row = { index };
    for (const name of names) row[name] = columns[name][index];
    return row;
  });
}

/** The graph of a page's data; heights grow downwards, as on a screen. */
export function readGraph(data) {
  const nodes = rows(data.nodes);
  for (const node of nodes) Object.assign(node, { y: -node.y, grid: data.kind !== "paths", into: [], out: [] });
  const edges = rows(data.edges);
  for (const edge of edges) {
    edge.from = nodes[edge.from];
    edge.to = nodes[edge.to];
    edge.way = edge.way ? edge.way.split(" ").map((place) => place.split(",").map(Number)) : [];
    for (const place of edge.way) place[1] = -place[1];
    edge.from.out.push(edge);
    edge.to.into.push(edge);
  }
  return { ...data, nodes, edges, valued: edges.some((edge) => edge.value !== null) };
}

/** Make the nodes of a graph what they are by one of the values among which a reader chooses; what has none is empty. */
export function takeChoice(graph, number) {
  for (const node of graph.nodes) Object.assign(node, node.variants[number] ?? { label: "", short: "", value: null, shade: "transparent", more: [] });
}

/** A node ends the graph: it is what everything is explained of. */
export const isEnd = (node) => node.role === "sink" || node.role === "target";

/** Nodes, each after those that lead to it. */
export function inOrder(nodes) {
  const waiting = nodes.map((node) => node.into.length);
  const ready = nodes.filter((node) => node.into.length === 0);
  for (let at = 0; at < ready.length; at++) {
    for (const edge of ready[at].out) if (--waiting[edge.to.index] === 0) ready.push(edge.to);
  }
  return ready;
}
