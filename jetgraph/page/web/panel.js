import { counted, make, percent, told } from "./elements.js";
import { formulaOf } from "./formula.js";
import { cellOf } from "./quotient.js";

/** What is known of the chosen node: facts, formula, and edges by size. */

const LISTED = 60;

function table(facts) {
  const list = make("dl");
  for (const [name, value] of facts) if (value !== "" && value !== null && value !== undefined) list.append(make("dt", {}, name), make("dd", {}, value));
  return list;
}

/** Edges as buttons with bars: largest positive first, then negative ones. */
function edgeList(title, edges, other, choose) {
  if (!edges.length) return null;
  const sorted = [...edges].sort((a, b) => (b.value ?? 0) - (a.value ?? 0));
  const largest = Math.max(...edges.map((edge) => Math.abs(edge.value ?? 0))) || 1;
  const valued = edges.some((edge) => edge.value !== null);
  const sum = edges.reduce((total, edge) => total + (edge.value ?? 0), 0);
  const half = LISTED / 2;
  const shown = sorted.length > LISTED ? [...sorted.slice(0, half), ...sorted.slice(-half)] : sorted;
  const items = shown.map((edge) => {
    const bar = make("meter", { class: (edge.value ?? 0) < 0 ? "takes" : "gives", min: 0, max: 1, value: Math.abs(edge.value ?? 0) / largest, "aria-hidden": "true" });
    const row = [make("span", { class: "name" }, edge[other].label), valued ? bar : null, make("span", { class: "number" }, told(edge.value))];
    return make("li", {}, make("button", { type: "button", onclick: () => choose(edge[other]) }, ...row));
  });
  const more = sorted.length > LISTED ? make("p", { class: "note" }, `${counted(sorted.length - LISTED)} smaller ${sorted.length - LISTED > 1 ? "ones are" : "one is"} not listed`) : null;
  return make("section", {}, make("h3", {}, `${title} (${counted(edges.length)})`, valued ? make("span", { class: "number" }, `Σ ${told(sum)}`) : ""), make("ul", { class: "edges" }, ...items), more);
}

/** Facts of one node of the graph. */
function facts(graph, node) {
  const weight = node.weight && node.weight !== "1" ? node.weight : "";
  return [
    [graph.valueName, told(node.value)], ["share", percent(node.share)], ["influence", node.influence === null ? "" : percent(node.influence)],
    ["paths through it", node.paths], ["kind", node.kind === "cell" ? "" : node.kind], ["module", node.path], ["block", node.layer],
    ["position", node.position >= 0 ? String(node.position) : ""], ["token", node.token],
    ["order", node.order >= 0 ? String(node.order) : ""], ["weight", weight], ...(node.more ?? []),
  ];
}

/** Fill the panel with a node of what is shown. */
export function fillPanel(panel, graph, shown, state, act) {
  const first = shown.members[0];
  const pinned = shown.members.some((node) => state.pinned.has(node.index));
  const button = (text, key, run) => make("button", { type: "button", title: `${text} (${key})`, onclick: run }, text);
  const cell = cellOf(first);
  const buttons = make("div", { class: "buttons" },
    button(pinned ? "Unpin" : "Pin", "p", act.pin),
    state.selected.length > 1 || shown.name.startsWith("group:") ? button(shown.name.startsWith("group:") ? "Ungroup" : "Group", "g", act.group) : null,
    shown.name.startsWith("fold:") ? button("Unfold", "Enter", act.fold) : cell && shown.single ? button(`Fold ${cell}`, "Enter", act.fold) : null,
  );
  const body = shown.single
    ? [first.formula && first.formula !== first.alias ? make("p", { class: "formula" }, formulaOf(first.formula)) : null, table(facts(graph, first))]
    : [table([["nodes", counted(shown.members.length)], [graph.valueName, told(shown.value)]]), memberList(shown, act.choose)];
  panel.replaceChildren(
    make("h2", {}, make("i", { class: "kind" }), shown.label), buttons, ...body.filter((one) => one !== null),
    ...[edgeList("from", shown.into, "from", act.choose), edgeList("to", shown.out, "to", act.choose)].filter((one) => one !== null),
  );
  panel.querySelector(".kind").style.background = first.shade ?? graph.colours[shown.kind] ?? graph.colours[""];
}

function memberList(shown, choose) {
  const items = shown.members.slice(0, LISTED).map((node) =>
    make("li", {}, make("span", { class: "name" }, node.label), make("span", { class: "number" }, told(node.value))));
  return make("section", {}, make("h3", {}, "holds"), make("ul", { class: "members" }, ...items));
}

/** What the panel says while nothing is chosen. */
export function fillSummary(panel, graph) {
  // Sources of paths are drawn as frames.
  const filled = graph.nodes.filter((node) => graph.kind !== "paths" || node.role !== "source");
  const kinds = [...new Set(filled.map((node) => node.kind))].filter((kind) => kind && graph.colours[kind]);
  const legend = make("ul", { class: "legend" });
  for (const kind of kinds) {
    const dot = make("i", { class: "kind" });
    dot.style.background = graph.colours[kind];
    legend.append(make("li", {}, dot, kind));
  }
  panel.replaceChildren(
    make("h2", {}, "Overview"), table(graph.facts), graph.valued ? make("p", { class: "signs" }, make("b", { class: "gives" }, "adds"), " ", make("b", { class: "takes" }, "takes away")) : "",
    legend, make("p", { class: "note" }, graph.note), make("p", { class: "note" }, `${graph.kind === "cells" ? "Choose a cell for its numbers" : "Choose a node for its formula, value and edges"}. Press ? for the keys.`),
  );
}
