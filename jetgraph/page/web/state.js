import { cellsOf } from "./quotient.js";

/** What a reader has chosen, which the address keeps after its `#`. */

const numbers = (text) => (text ? text.split(".").map(Number).filter(Number.isInteger) : []);

/** Whether addresses can be written: an embedded page has none. */
const addressed = () => !location.protocol.startsWith("about");

export const noState = () => ({
  folded: new Set(), pinned: new Set(), groups: [], threshold: 0, query: "", selected: [], theme: "", view: null, choice: null,
});

/** The state that an address tells; null where it tells none. What it names that is not there is left out. */
export function readState(fragment, graph) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  if (![...given.keys()].length) return null;
  const known = (index) => index >= 0 && index < graph.nodes.length;
  const state = noState();
  const cells = cellsOf(graph);
  state.folded = new Set(given.get("fold") === "*" ? cells : given.getAll("fold").filter((cell) => cells.has(cell)));
  state.pinned = new Set(numbers(given.get("pin")).filter(known));
  state.groups = given.getAll("group").map((text) => numbers(text).filter(known)).filter((group) => group.length > 1);
  state.threshold = Math.min(100, Math.max(0, Number(given.get("least")) || 0));
  state.query = given.get("find") ?? "";
  state.selected = numbers(given.get("node")).filter(known);
  state.theme = ["light", "dark"].includes(given.get("theme")) ? given.get("theme") : "";
  const choice = graph.choice?.texts.map(String).indexOf(given.get("show")) ?? -1;
  state.choice = choice < 0 ? null : choice;
  const view = (given.get("view") ?? "").split(",").map(Number);
  state.view = view.length === 3 && view.every(Number.isFinite) && view[2] > 0 ? view : null;
  return state;
}

/** A state as the text of an address. */
export function writeState(state, graph) {
  const told = new URLSearchParams();
  const all = state.folded.size > 0 && state.folded.size === cellsOf(graph).size;
  for (const cell of all ? ["*"] : state.folded) told.append("fold", cell);
  for (const group of state.groups) told.append("group", group.join("."));
  if (state.pinned.size) told.set("pin", [...state.pinned].join("."));
  if (state.threshold) told.set("least", String(state.threshold));
  if (state.query) told.set("find", state.query);
  if (state.selected.length) told.set("node", state.selected.join("."));
  if (state.choice !== null) told.set("show", String(graph.choice.texts[state.choice]));
  if (state.theme) told.set("theme", state.theme);
  if (state.view) told.set("view", state.view.map((number) => Number(number.toPrecision(5))).join(","));
  return told.toString();
}

/** Put a state into the address. */
export function keepState(state, graph) {
  if (addressed()) history.replaceState(null, "", `#${writeState(state, graph)}`);
}
