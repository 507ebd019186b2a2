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

// One case: hide nodes of little influence, look at a node, follow what adds to it and what it adds to.
function follow(root) {
  const nodes = [...root.querySelectorAll("[data-spot]")];
  const edges = [...root.querySelectorAll("[data-from]")].reverse();  // strongest first
  const into = nodes.map(() => []);
  const from = nodes.map(() => []);
  for (const edge of edges) {
    into[edge.dataset.to].push(edge);
    from[edge.dataset.from].push(edge);
  }
  const slider = root.querySelector("input");
  const { least, most, shown } = slider.dataset;
  const part = (name) => root.querySelector(name);
  const notes = new Map([...root.parentElement.querySelectorAll("[data-note]")].map((cell) => [nodes[cell.dataset.note], cell]));
  const groups = [...root.querySelectorAll("[data-group]")];
  let chosen = null;
  let gathered = null;  // the button of a supernode

  function limit() {
    const low = Math.max(Number(least), 1e-6);
    const share = Number(slider.value) ? low * (Number(most) / low) ** (slider.value / 100) : 0;
    let open = Number(shown);
    for (const node of nodes) {
      node.classList.toggle("away", Number(node.dataset.influence) < share * (1 - 1e-9));
    }
    for (const edge of edges) {
      const away = [edge.dataset.from, edge.dataset.to].some((end) => nodes[end].classList.contains("away"));
      edge.classList.toggle("away", away);
      edge.classList.toggle("weak", away || open <= 0);
      open -= away ? 0 : 1;
    }
    const seen = nodes.filter((node) => !node.classList.contains("away")).length;
    part("output").textContent = `${share ? Number((100 * share).toPrecision(2)) : 0}%: ${seen} of ${nodes.length} nodes`;
    if (chosen && chosen.classList.contains("away")) {
      choose(null);
    } else {
      tabbable(chosen || nodes.find((node) => node.getAttribute("tabindex") === "0" && !node.classList.contains("away")) || nodes.at(-1));
    }
  }

  function tabbable(node) {
    for (const other of nodes) {
      other.setAttribute("tabindex", other === node ? "0" : "-1");
    }
  }

  function list(name, found, end, count) {
    const weight = (edge) => Number(edge.dataset.weight.replace("−", "-"));
    const sorted = [...found].sort((a, b) => Math.abs(weight(b)) - Math.abs(weight(a)));
    const items = sorted.slice(0, count).map((edge) => {
      const other = nodes[edge.dataset[end]];
      const button = document.createElement("button");
      const number = document.createElement("b");
      number.textContent = edge.dataset.weight;
      button.type = "button";
      button.className = edge.classList.contains("neg") ? "neg" : "pos";
      button.append(number, other.dataset.name);
      button.addEventListener("click", () => { choose(other); focus(other); });
      const item = document.createElement("li");
      item.append(button);
      return item;
    });
    const place = part(`[data-list="${name}"]`);
    place.replaceChildren(...items);
    if (sorted.length !== items.length) {
      place.append(`and ${sorted.length - items.length} more`);
    } else if (!items.length) {
      place.textContent = "nothing that is drawn";
    }
  }

  // The panel is about the node that is pointed at; else about the chosen one.
  function tell(node) {
    part(".said").textContent = node ? node.dataset.name : gathered ? `Supernode: ${gathered.textContent}` : "";
    if (part(".note")) {
      part(".note").replaceChildren(...(notes.has(node) ? notes.get(node).cloneNode(true).childNodes : []));
    }
    part(".context").textContent = node && node.dataset.context || "";
    part(".facts-of").textContent = node ? node.dataset.facts : "";
    part(".rest").textContent = node && node.dataset.rest ? `${node.dataset.rest}.` : "";
    part(".lists").hidden = !node;
    part(".hint").hidden = Boolean(node || gathered);
    const place = nodes.indexOf(node);
    const count = node === chosen ? Infinity : 6;
    list("in", into[place] || [], "from", count);
    list("out", from[place] || [], "to", count);
  }

  function light(node) {
    const place = nodes.indexOf(node);
    const lit = new Set([...(into[place] || []), ...(from[place] || [])]);
    const near = new Set([place, ...[...lit].flatMap((edge) => [Number(edge.dataset.from), Number(edge.dataset.to)])]);
    for (const edge of edges) {
      edge.classList.toggle("lit", lit.has(edge) && !edge.classList.contains("away"));
      edge.classList.toggle("dim", Boolean(node) && !lit.has(edge));
    }
    nodes.forEach((other, number) => other.classList.toggle("dim", Boolean(node) && !near.has(number)));
  }

  // A supernode: its members alone stand out, with what adds to them and what they add to.
  function gather(button) {
    gathered = button;
    const members = new Set(button ? button.dataset.group.split(" ") : []);
    for (const edge of button ? edges : []) {
      const touches = members.has(edge.dataset.from) || members.has(edge.dataset.to);
      edge.classList.toggle("lit", touches && !edge.classList.contains("away"));
      edge.classList.toggle("dim", !touches);
    }
    for (const node of nodes) {
      node.classList.toggle("gathered", members.has(node.dataset.spot));
      node.classList.toggle("dim", members.size ? !members.has(node.dataset.spot) : node.classList.contains("dim"));
    }
    for (const other of groups) {
      other.setAttribute("aria-pressed", String(other === button));
    }
  }

  function choose(node, button = null) {
    chosen = node;
    light(node);
    gather(button);
    tell(node);
    for (const other of nodes) {
      other.classList.toggle("chosen", other === node);
      other.setAttribute("aria-pressed", String(other === node));
    }
    part("[data-clear]").hidden = !(node || button);
    if (node) {
      tabbable(node);
    }
  }

  function focus(node) {
    tabbable(node);
    node.focus();
  }

  // The nearest node in the direction of an arrow key; what lies off to the side counts as farther away.
  function beside(node, right, down) {
    const far = (other) => {
      const across = (other.dataset.x - node.dataset.x) * (right || 1);
      const along = (other.dataset.y - node.dataset.y) * (down || 1);
      const [ahead, aside] = right ? [across, along] : [along, across];
      return ahead > 0.5 ? ahead + 2.5 * Math.abs(aside) : Infinity;
    };
    const open = nodes.filter((other) => other !== node && !other.classList.contains("away"));
    const best = open.reduce((a, b) => (a && far(a) <= far(b) ? a : b), null);
    return best && far(best) < Infinity ? best : null;
  }

  for (const node of nodes) {
    node.addEventListener("click", () => choose(node === chosen ? null : node));
    for (const [name, about] of [["mouseenter", () => node], ["focus", () => node], ["mouseleave", () => chosen], ["blur", () => chosen]]) {
      node.addEventListener(name, () => tell(about()));
    }
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Enter" || event.key === " ") {
        choose(node === chosen ? null : node);
      } else if (step) {
        const next = beside(node, ...step);
        if (next) {
          focus(next);
        }
      } else {
        return;
      }
      event.preventDefault();
    });
  }
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      choose(null);
    }
  });
  for (const button of groups) {
    button.disabled = !button.dataset.group;
    button.addEventListener("click", () => choose(null, button === gathered ? null : button));
  }
  part("[data-clear]").addEventListener("click", () => choose(null));
  slider.addEventListener("input", limit);
  part(".tools").hidden = part(".panel").hidden = false;
  const canvas = part(".canvas");  // the decision is in sight
  canvas.scrollLeft = nodes.at(-1).dataset.x / part("svg.network").viewBox.baseVal.width * canvas.scrollWidth - canvas.clientWidth / 2;
  choose(null);
  limit();
}

document.querySelectorAll("[data-graph]").forEach(start);
document.querySelectorAll("[data-case]").forEach(follow);
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
});
