/** Texts at the edge of the canvas that say which token a column is, and which part of the model a row. */

/** Groups of nodes of a grid that share a place on an axis, with its middle. */
function ticks(nodes, key, text, at) {
  const found = new Map();
  for (const node of nodes) {
    const name = key(node);
    if (name === null) continue;
    if (!found.has(name)) found.set(name, { text: text(node), places: [] });
    found.get(name).places.push(at(node));
  }
  return [...found.values()].map(({ text: name, places }) => ({
    text: name, at: (Math.min(...places) + Math.max(...places)) / 2,
  }));
}

/** The axes of a graph; `update` moves them with the view. */
export function makeAxes(container, graph, drawing) {
  if (graph.kind === "paths") return { update() {} };
  const placed = graph.nodes.filter((node) => node.position >= 0 && node.role !== "rest");
  const columns = ticks(placed, (node) => node.position, (node) => `${node.position}\u2002${node.token}`, (node) => node.x);
  const rows = ticks(graph.nodes.filter((node) => node.role !== "rest"), (node) => node.row, (node) => node.row, (node) => node.y);
  const make = (name, one) => {
    const label = document.createElement("span");
    label.className = name;
    label.textContent = label.title = one.text;
    container.append(label);
    return { ...one, label };
  };
  const across = columns.map((one) => make("column", one));
  const up = rows.map((one) => make("row", one));

  /** Put texts where there is room for them. */
  function place(labels, pan, zoom, limit, axis) {
    let last = -Infinity;
    for (const one of [...labels].sort((a, b) => a.at - b.at)) {
      const at = one.at * zoom + pan;
      one.label.hidden = false;
      one.half ??= (axis === "x" ? one.label.offsetWidth : one.label.offsetHeight) / 2;
      one.label.hidden = at < 0 || at > limit || at - one.half < last;
      if (one.label.hidden) continue;
      last = at + one.half;
      one.label.style.transform = axis === "x" ? `translate(${at}px, 0) translateX(-50%)` : `translate(0, ${at}px) translateY(-50%)`;
    }
  }
  return {
    update() {
      const [x, y, zoom] = drawing.view();
      place(across, x, zoom, container.clientWidth, "x");
      place(up, y, zoom, container.clientHeight - 24, "y");
    },
  };
}
