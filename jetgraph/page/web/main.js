import { makeAxes } from "./axes.js";
import { makeDrawing } from "./drawing.js";
import { counted, make, openWith, part, told, unpacked } from "./elements.js";
import { readGraph, takeChoice } from "./graph.js";
import { fillPanel, fillSummary } from "./panel.js";
import { search } from "./patterns.js";
import { cellOf, cellsOf, quotient, sliderFor, threshold } from "./quotient.js";
import { keepState, noState, readState } from "./state.js";

/** More nodes than these are folded block by block when the page opens. */
const MANY = 1500;

/** Of more edges than these, the largest ones are shown when the page opens. */
const DRAWN = 400;

/** The page of a graph: what a reader does changes the state, and the state is drawn. */
function openPage(cytoscape, data) {
  const graph = readGraph(data);
  const cells = cellsOf(graph);
  let state = readState(location.hash, graph) ?? firstState();
  let shown = null;
  let left = null;
  let found = { nodes: [], edges: [] };
  let at = -1;

  /** What a page opens with: many nodes folded, and of many edges the largest ones. */
  function firstState() {
    const first = { ...noState(), folded: new Set(graph.nodes.length > MANY ? cells : []) };
    if (graph.valued) first.threshold = sliderFor(quotient(graph, first).edges, DRAWN);
    return first;
  }

  const drawing = makeDrawing(cytoscape, part("canvas"), graph, { tap, double, view });
  const axes = makeAxes(part("axes"), graph, drawing);

  /** Draw the state anew: from what is folded on, from what is left out on, or only the marks. */
  function update(from = "folds") {
    if (from === "folds") shown = quotient(graph, state);
    if (from !== "marks") {
      left = threshold(shown, state);
      drawing.show(shown, left);
    }
    found = search(graph, state.query);
    drawing.mark(state, found);
    tell();
    keepState(state, graph);
  }

  function tell() {
    const chosen = state.selected.length ? shown.standsFor[state.selected.at(-1)] : null;
    if (chosen) fillPanel(part("panel"), graph, chosen, state, { pin, group, fold, choose });
    else fillSummary(part("panel"), graph);
    part("main").classList.toggle("chosen", chosen !== null);
    part("found").textContent = state.query ? `${at >= 0 ? `${counted(at + 1)} of ` : ""}${counted(found.nodes.length)} found` : "";
    const most = graph.total === null ? "" : `; of those into the target ${told(left.atEnd)} of ${told(graph.total)}`;
    const number = left.hiddenEdges.size;
    part("hidden").textContent = number ? `|value| ≥ ${told(left.least)} · hidden: ${counted(number)} of ${counted(shown.edges.length)} edges, Σ ${told(left.sum)}${most}` : "everything is shown";
    part("said").textContent = chosen ? `${chosen.label}, ${counted(chosen.into.length)} edges in, ${counted(chosen.out.length)} out` : "";
  }

  // What a reader does

  function tap(node, more) {
    const indices = node ? node.members.map((member) => member.index) : [];
    state.selected = more && node ? [...state.selected.filter((index) => !indices.includes(index)), ...indices] : indices;
    update("marks");
  }
  function double(node) { tap(node); fold(); }
  function choose(node) { tap(node); drawing.centre(node); }
  function view() {
    axes.update();
    state.view = drawing.view();
    clearTimeout(view.waiting);
    view.waiting = setTimeout(() => keepState(state, graph), 150);
  }
  function pin() {
    const all = state.selected.every((index) => state.pinned.has(index));
    for (const index of state.selected) if (all) state.pinned.delete(index); else state.pinned.add(index);
    update();
  }
  function group() {
    const chosen = new Set(state.selected);
    const old = state.groups.findIndex((one) => one.length === chosen.size && one.every((index) => chosen.has(index)));
    if (old < 0 && chosen.size < 2) return;
    state.groups = state.groups.filter((one, number) => number !== old && !one.some((index) => chosen.has(index)));
    if (old < 0) state.groups.push([...chosen]);
    update();
  }
  function fold() {
    const last = state.selected.at(-1);
    const cell = last === undefined ? "" : cellOf(graph.nodes[last]);
    if (!cells.has(cell)) return;
    if (state.folded.has(cell)) state.folded.delete(cell); else state.folded.add(cell);
    update();
  }
  function foldAll() {
    state.folded = new Set(state.folded.size ? [] : cells);
    update();
  }
  /** Show the cells by another of the values, such as the order of a lens. */
  function show(number) {
    state.choice = number === graph.choice.first ? null : number;
    part("choice").querySelector("select").value = String(number);
    takeChoice(graph, number);
    update();
  }
  function showNext() {
    if (graph.choice) show(((state.choice ?? graph.choice.first) + 1) % graph.choice.texts.length);
  }
  function step(back) {
    if (!found.nodes.length) return;
    at = (at + (back ? -1 : 1) + found.nodes.length) % found.nodes.length;
    choose(shown.standsFor[found.nodes[at].index]);
  }
  function setTheme(theme) {
    state.theme = theme;
    document.documentElement.dataset.theme = theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    drawing.restyle();
  }
  function move(dx, dy) {
    const nodes = drawing.nodes();
    const from = state.selected.length ? shown.standsFor[state.selected.at(-1)] : null;
    const next = from ? drawing.next(from, dx, dy) : nodes[0];
    if (next) choose(next);
  }
  function zoom(factor) {
    const cy = drawing.cy;
    cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } });
  }

  const keys = {
    ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
    Enter: fold, o: showNext, p: pin, g: group, f: foldAll, n: () => step(false), N: () => step(true), 0: () => drawing.fit(),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), "/": () => part("search").focus(),
    d: () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); keepState(state, graph); },
    "?": () => part("help").showModal(), Escape: () => tap(null),
  };
  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || part("help").open) return;
    const typing = event.target instanceof HTMLInputElement && event.target.type === "search";
    if (typing && event.key === "Enter") step(event.shiftKey);
    else if (typing && event.key === "Escape") part("canvas").focus();
    else if (typing || (event.target instanceof HTMLElement && event.target.closest("button, input, select") && ["Enter", " ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key))) return;
    else if (Object.hasOwn(keys, event.key)) keys[event.key]();
    else return;
    event.preventDefault();
  }

  document.title = graph.title;
  part("title").textContent = graph.title;
  part("title").title = graph.title;
  part("search").addEventListener("input", (event) => { state.query = event.target.value; at = -1; update("marks"); });
  part("least").addEventListener("input", (event) => { state.threshold = Number(event.target.value); update("threshold"); });
  part("fold").addEventListener("click", foldAll);
  part("fit").addEventListener("click", () => drawing.fit());
  part("theme").addEventListener("click", keys.d);
  part("keys").addEventListener("click", keys["?"]);
  if (graph.choice) {
    const select = part("choice").querySelector("select");
    part("choice").querySelector("span").textContent = graph.choice.name;
    select.append(...graph.choice.texts.map((text, number) => make("option", { value: number }, String(text))));
    select.addEventListener("change", () => show(Number(select.value)));
    part("choice").hidden = false;
  }
  document.addEventListener("keydown", press);
  addEventListener("resize", () => { drawing.refit(); axes.update(); });
  addEventListener("hashchange", () => { state = readState(location.hash, graph) ?? firstState(); restore(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(state.theme));

  /** Make the page what the state says. */
  function restore() {
    const wanted = state.view;
    part("search").value = state.query;
    part("least").value = String(state.threshold);
    setTheme(state.theme);
    if (graph.choice) show(state.choice ?? graph.choice.first); else update();
    if (wanted) drawing.setView(wanted); else drawing.open();
    axes.update();
  }
  part("fold").disabled = cells.size === 0;
  part("threshold").hidden = !graph.valued;
  restore();
  document.documentElement.dataset.ready = "yes";
  return { graph, drawing, state: () => state };
}

/** Run the library, whose digest the page's policy knows, and open the page. */
async function start() {
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  globalThis.jetgraph = openPage(globalThis.cytoscape, JSON.parse(await unpacked("data")));
}

openWith(start);
