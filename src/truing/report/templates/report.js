"use strict";
// One graph: hide weak edges, choose a node, show what adds to it and what it adds to.
function start(root) {
  const nodes = [...root.querySelectorAll("[data-node]")];
  const edges = [...root.querySelectorAll("[data-rank]")].sort((a, b) => a.dataset.rank - b.dataset.rank);
  const slider = root.querySelector("input");
  const output = root.querySelector("output");
  const clear = root.querySelector("[data-clear]");
  const said = root.querySelector(".said");
  const lists = root.querySelector(".lists");
  let chosen = null;

  function limit() {
    const count = Math.min(Number(slider.value), edges.length);
    edges.forEach((edge, place) => edge.classList.toggle("weak", place >= count));
    const last = edges[count - 1];
    output.textContent = last
      ? `${count} of ${edges.length}, ${last.dataset.share} of the flow, weight at least ${last.dataset.weight.replace(/^[+−]/, "")}`
      : "no edges";
  }

  function list(name, found, end) {
    const place = root.querySelector(`[data-list="${name}"]`);
    place.replaceChildren(...found.map((edge) => {
      const other = nodes[Number(edge.dataset[end])];
      const button = document.createElement("button");
      const weight = document.createElement("b");
      weight.textContent = edge.dataset.weight;
      button.type = "button";
      button.className = edge.classList.contains("neg") ? "neg" : "pos";
      button.append(weight, other.dataset.name);
      button.addEventListener("click", () => choose(other));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    if (!found.length) {
      place.textContent = "nothing";
    }
  }

  function choose(node) {
    chosen = node;
    const id = node && node.dataset.node;
    const into = edges.filter((edge) => edge.dataset.target === id);
    const from = edges.filter((edge) => edge.dataset.source === id);
    const near = new Set([id, ...into.map((edge) => edge.dataset.source), ...from.map((edge) => edge.dataset.target)]);
    for (const edge of edges) {
      const touches = Boolean(node) && (edge.dataset.source === id || edge.dataset.target === id);
      edge.classList.toggle("lit", touches);
      edge.classList.toggle("dim", Boolean(node) && !touches);
    }
    for (const other of nodes) {
      other.classList.toggle("chosen", other === node);
      other.classList.toggle("dim", Boolean(node) && !near.has(other.dataset.node));
      other.setAttribute("aria-pressed", String(other === node));
    }
    clear.hidden = lists.hidden = !node;
    said.textContent = node ? node.dataset.said : "";
    list("in", into, "source");
    list("out", from, "target");
  }

  function focus(node) {
    for (const other of nodes) {
      other.setAttribute("tabindex", other === node ? "0" : "-1");
    }
    node.focus();
  }

  nodes.forEach((node, place) => {
    node.addEventListener("click", () => choose(node === chosen ? null : node));
    node.addEventListener("mouseenter", () => { said.textContent = node.dataset.said; });
    node.addEventListener("focus", () => { said.textContent = node.dataset.said; });
    node.addEventListener("mouseleave", () => { said.textContent = chosen ? chosen.dataset.said : ""; });
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (event.key === "Enter" || event.key === " ") {
        choose(node === chosen ? null : node);
      } else if (step) {
        focus(nodes[(place + step + nodes.length) % nodes.length]);
      } else {
        return;
      }
      event.preventDefault();
    });
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      choose(null);
    }
  });
  clear.addEventListener("click", () => choose(null));
  slider.addEventListener("input", limit);
  limit();
}

document.querySelectorAll("[data-graph]").forEach(start);
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
});
