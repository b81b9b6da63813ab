import { largestOf } from "./quotient.js";

/** The graph on its canvas: what `quotient` and `threshold` leave, at the places that came with it. */

/** By kind of graph, a zoom at which what is written on nodes can be read; on cells it is all that there is. */
const LEGIBLE = { tokens: 0.72, cells: 1 };

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** How wide an edge is drawn that has a share of the largest. */
const widthOf = (share) => 0.6 + 5.4 * Math.sqrt(share);

/** Bends of an edge, as cytoscape wants them: shares of the way from end to end, and distances from it. */
function bends(from, to, way) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy) || 1;
  return {
    weights: way.map(([x, y]) => ((x - from.x) * dx + (y - from.y) * dy) / length ** 2),
    distances: way.map(([x, y]) => ((y - from.y) * dx - (x - from.x) * dy) / length),
  };
}

/** Which way an edge goes: along its bends, up to a box and down from it, or straight. */
function shapeOf(graph, edge) {
  const [from, to] = [edge.from, edge.to];
  const [first] = edge.members;
  if (graph.kind !== "paths") return "plain";
  if (from.single && to.single && first.way.length) return "bent";
  if (!from.single || !to.single || !graph.straight || Math.abs(from.y - to.y) < 1) return "plain";
  return from.role === "point" ? "rises" : "falls";
}

function nodeElement(graph, shown) {
  return {
    group: "nodes",
    data: { id: shown.name, label: graph.kind === "paths" ? shown.label : shown.short, width: Math.max(shown.width, 10), ink: shown.members[0].ink },
    position: { x: shown.x, y: shown.y },
    classes: `${shown.role} ${graph.kind}`,
  };
}

function edgeElement(graph, edge, largest) {
  const shape = shapeOf(graph, edge);
  const share = edge.value === null ? 0.12 : Math.abs(edge.value) / (largest || 1);
  const sign = edge.value === null ? "" : edge.value < 0 ? "takes" : "gives";
  const data = { id: edge.name, source: edge.from.name, target: edge.to.name, width: widthOf(share), strength: 0.25 + 0.65 * Math.sqrt(share) };
  if (shape === "bent") Object.assign(data, bends(edge.from, edge.to, edge.members[0].way));
  const aside = edge.from.role === "rest" || edge.to.role === "rest" ? "aside" : "";
  if (sign === "") data.colour = graph.colours[edge.members[0].role === "branch" ? edge.members[0].kind : ""] ?? graph.colours[""];
  return { group: "edges", data, classes: `${shape} ${sign || "plainly"} ${aside}` };
}

/** Styles by class; `colour` gives a node's. */
function styles(graph, colour) {
  const [paper, ink, quiet, mark, gives, takes] = ["--paper", "--ink", "--quiet", "--mark", "--gives", "--takes"].map(css);
  const sideways = graph.kind === "paths";
  const ends = sideways ? { "source-endpoint": "50% 0%", "target-endpoint": "-50% 0%" } : { "source-endpoint": "0% -50%", "target-endpoint": "0% 50%" };
  const many = graph.edges.length > 3000;
  return [
    { selector: "node", style: {
      shape: "round-rectangle", width: "data(width)", height: sideways ? 24 : 18, label: "data(label)",
      "font-family": "system-ui, sans-serif", "font-size": sideways ? 12 : 10, "text-valign": "center", "text-halign": "center",
      "background-color": colour, color: "#fff", "min-zoomed-font-size": 4.5, "border-width": 0,
    } },
    { selector: "node.point", style: {
      shape: "ellipse", width: 10, height: 10, "background-color": paper, "border-width": 2, "border-color": quiet,
      color: quiet, "font-size": 9, "text-valign": "bottom", "text-halign": "right", "text-margin-y": -2, "text-margin-x": -4,
    } },
    { selector: "node.paths.source, node.sink, node.rest", style: { "background-color": paper, color: ink, "border-width": 1.5, "border-color": ink } },
    { selector: "node.fold", style: { "border-width": 2, "border-color": ink, "border-style": "double" } },
    { selector: "node.cell", style: {
      shape: "rectangle", height: 24, "font-size": 10, color: "data(ink)", "text-wrap": "ellipsis", "text-max-width": "data(width)",
    } },
    { selector: "edge", style: {
      width: "data(width)", "curve-style": many ? "haystack" : "straight", "line-color": quiet, opacity: "data(strength)",
      "target-arrow-shape": "triangle", "target-arrow-color": quiet, "arrow-scale": 0.6, ...(many ? {} : ends),
    } },
    { selector: "edge.gives", style: { "line-color": gives, "target-arrow-color": gives } },
    { selector: "edge.takes", style: { "line-color": takes, "target-arrow-color": takes, "line-style": "dashed" } },
    { selector: "edge.plainly", style: { "line-color": "data(colour)", "target-arrow-color": "data(colour)", width: 1.6, opacity: 0.75 } },
    { selector: "edge.aside", style: { "line-color": quiet, "target-arrow-color": quiet, "line-style": "dotted", opacity: 0.4 } },
    { selector: "edge.bent", style: { "curve-style": "round-segments", "segment-weights": "data(weights)", "segment-distances": "data(distances)", "segment-radii": 8, "edge-distances": "node-position" } },
    { selector: "edge.rises", style: { "curve-style": "round-taxi", "taxi-direction": "vertical", "taxi-turn": "100%", "taxi-radius": 12, "source-endpoint": "outside-to-node" } },
    { selector: "edge.falls", style: { "curve-style": "round-taxi", "taxi-direction": "horizontal", "taxi-turn": "100%", "taxi-radius": 12, "target-endpoint": "outside-to-node" } },
    { selector: ".faint", style: { opacity: 0.18 } },
    { selector: "node.pinned", style: { "border-width": 3, "border-color": mark, "border-style": "solid" } },
    { selector: "node.found", style: { "underlay-color": mark, "underlay-opacity": 0.45, "underlay-padding": 5 } },
    { selector: "edge.found", style: { "underlay-color": mark, "underlay-opacity": 0.35, "underlay-padding": 3, opacity: 1 } },
    { selector: "node.chosen", style: { "outline-width": 3, "outline-color": ink, "outline-offset": 2 } },
    { selector: "edge.near", style: { opacity: 1, "z-index": 9 } },
  ];
}

/** A canvas for a graph. `on` has what is done at a tap, a double tap and a change of view. */
export function makeDrawing(cytoscape, container, graph, on) {
  const cy = cytoscape({
    container, elements: [], style: [], layout: { name: "preset" }, minZoom: 0.02, maxZoom: 4,
    boxSelectionEnabled: false, autoungrabify: true, selectionType: "single", hideEdgesOnViewport: graph.edges.length > 3000,
    textureOnViewport: graph.nodes.length > 4000,
  });
  const shownBy = new Map();
  let shown = null;
  const colour = (element) => {
    const node = shownBy.get(element.id());
    return node?.members[0].shade ?? graph.colours[node?.kind] ?? graph.colours[""];
  };
  /** Fits it again; null once a reader has moved it. */
  let again = null;
  let fitting = false;
  const tapped = ["", ""];
  cy.on("tap", "node", (event) => {
    tapped.push(event.target.id());
    tapped.shift();
    on.tap(shownBy.get(event.target.id()), event.originalEvent?.shiftKey);
  });
  // Two clicks on different nodes are no double click.
  cy.on("dbltap", "node", (event) => { if (tapped[0] === tapped[1]) on.double(shownBy.get(event.target.id())); });
  cy.on("tap", (event) => { if (event.target === cy) on.tap(null); });
  cy.on("viewport", () => {
    if (!fitting) again = null;
    on.view();
  });

  return {
    cy,
    /** Draw what is left of a quotient. */
    show(quotient, left) {
      shown = quotient;
      shownBy.clear();
      const nodes = quotient.nodes.filter((node) => !left.hiddenNodes.has(node));
      const visible = new Set(nodes);
      const edges = quotient.edges.filter((edge) => !left.hiddenEdges.has(edge) && visible.has(edge.from) && visible.has(edge.to));
      const largest = largestOf(quotient.edges);
      for (const node of nodes) shownBy.set(node.name, node);
      cy.batch(() => {
        cy.elements().remove();
        cy.add([...nodes.map((node) => nodeElement(graph, node)), ...edges.map((edge) => edgeElement(graph, edge, largest))]);
      });
    },
    /** Mark what is chosen, pinned and found. */
    mark(state, found) {
      cy.batch(() => {
        cy.elements().removeClass("chosen near faint pinned found");
        for (const index of state.pinned) cy.getElementById(shown.standsFor[index].name).addClass("pinned");
        for (const node of found.nodes) cy.getElementById(shown.standsFor[node.index].name).addClass("found");
        const onWalks = new Set(found.edges);
        for (const edge of onWalks.size ? shown.edges : []) {
          if (edge.members.some((one) => onWalks.has(one))) cy.getElementById(edge.name).addClass("found");
        }
        for (const index of state.selected) cy.getElementById(shown.standsFor[index].name).addClass("chosen");
        const chosen = cy.nodes(".chosen");
        if (chosen.nonempty() && graph.edges.length) {
          const near = chosen.closedNeighborhood();
          cy.elements().not(near).addClass("faint");
          near.edges().addClass("near");
        }
      });
    },
    restyle() { cy.style(styles(graph, colour)); },
    /** Show all of it, beside the axes; at least at a zoom, and then of what is high the upper end. */
    fit(least = 0) {
      const left = graph.kind === "paths" ? 24 : Math.min(110, 0.25 * cy.width());
      const [width, height] = [cy.width() - left - 24, cy.height() - 64];
      const box = cy.elements().boundingBox();
      const whole = Math.min(1.25, width / box.w, height / box.h);
      const zoom = Math.max(whole, Math.min(least, width / box.w));
      const above = Math.max(32, 32 + (height - zoom * box.h) / 2);
      fitting = true;
      cy.viewport({ zoom, pan: { x: left + (width - zoom * box.w) / 2 - zoom * box.x1, y: above - zoom * box.y1 } });
      fitting = false;
      again = () => this.fit(least);
    },
    /** After a change of the window: what nobody has moved is shown as a whole again. */
    refit() {
      cy.resize();
      again?.();
    },
    open() { this.fit(LEGIBLE[graph.kind]); },
    centre(node) {
      const element = cy.getElementById(node.name);
      if (element.nonempty()) cy.animate({ center: { eles: element }, duration: 150 });
    },
    view: () => [cy.pan().x, cy.pan().y, cy.zoom()],
    setView: ([x, y, zoom]) => cy.viewport({ zoom, pan: { x, y } }),
    /** What is drawn nearest to a node in a direction. */
    next(node, dx, dy) {
      const away = (other) => {
        const along = (other.x - node.x) * dx + (other.y - node.y) * dy;
        const across = Math.abs((other.x - node.x) * dy - (other.y - node.y) * dx);
        return along > 1 ? along + 3 * across : Infinity;
      };
      return [...shownBy.values()].reduce((best, other) => (away(other) < (best ? away(best) : Infinity) ? other : best), null);
    },
    nodes: () => [...shownBy.values()],
  };
}
