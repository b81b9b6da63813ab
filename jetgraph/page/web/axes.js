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

  const edge = {
    left: Math.min(...graph.nodes.map((node) => node.x - node.width / 2)),
    below: Math.max(...graph.nodes.map((node) => node.y + 14)),
  };

  /** Put texts where there is room for them, beside the graph or, where that is beyond it, at the edge of the canvas. */
  function place(labels, pan, zoom, limit, axis, beside) {
    let last = -Infinity;
    for (const one of [...labels].sort((a, b) => a.at - b.at)) {
      const at = one.at * zoom + pan;
      one.label.hidden = false;
      one.size ??= [one.label.offsetWidth, one.label.offsetHeight];
      const half = one.size[axis === "x" ? 0 : 1] / 2;
      one.label.hidden = at < 0 || at > limit || at - half < last;
      if (one.label.hidden) continue;
      last = at + half;
      const place = axis === "x" ? [at - half, beside] : [Math.max(2, beside - one.size[0]), at - half];
      one.label.style.transform = `translate(${place[0]}px, ${place[1]}px)`;
    }
  }
  return {
    update() {
      const [x, y, zoom] = drawing.view();
      const low = container.clientHeight - 24;
      place(across, x, zoom, container.clientWidth, "x", Math.min(low, edge.below * zoom + y + 4));
      place(up, y, zoom, low, "y", edge.left * zoom + x - 8);
    },
  };
}
