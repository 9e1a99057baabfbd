"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data"), lines = read("lines"), width = data.tokens.length;
  const grid = document.getElementById("grid"), panel = document.getElementById("panel");
  const svgs = [...document.querySelectorAll(".charts svg")];
  const put = (id, text) => { document.getElementById(id).textContent = text; };
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    element.className = name;
    element.textContent = text;
    return element;
  };
  const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) + "%" : p >= 0.0005 ? (100 * p).toFixed(1) + "%" : "<0.1%");
  let held = false, shown = null;

  function show(cell) {
    if (shown) { shown.classList.remove("on"); shown.tabIndex = -1; }
    shown = cell;
    cell.classList.add("on");
    cell.tabIndex = 0;
    const number = Number(cell.dataset.cell), row = Math.floor(number / width), pos = number % width;
    const [words, shares, rank, p, entropy, kl] = data.cells[number], target = data.words[data.targets[pos]];
    panel.hidden = false;
    put("where", `${data.sites[row]} after ${data.tokens[pos]} (position ${pos})`);
    const list = document.getElementById("top");
    list.replaceChildren(...words.map((word, i) => {
      const item = document.createElement("li"), track = document.createElement("span"), bar = make("div", "bar", "");
      bar.style.width = Math.max(0, 100 * shares[i]) + "%";
      track.append(bar);
      const name = make("bdi", "", data.words[word]);
      name.title = `${data.words[word]}, token id ${data.ids[word]}`;
      item.append(name, track, make("span", "p", percent(shares[i])));
      return item;
    }));
    put("numbers", `${target}: rank ${rank.toLocaleString("en")}, ${percent(p)}. Entropy ${entropy.toFixed(2)} nats, `
      + `KL to the output ${kl.toFixed(2)} nats.`);
    put("followed", target);
    put("position", String(pos));
    svgs.forEach((svg, i) => {
      const cursor = svg.querySelector(".cursor"), dot = svg.querySelector(".dot"), x = lines[i].xs[row];
      svg.querySelector(".line").setAttribute("d", lines[i].paths[pos]);
      cursor.removeAttribute("hidden");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", lines[i].ys[pos][row]);
    });
  }

  const cellOf = (event) => event.target.closest("td[data-cell]");
  grid.addEventListener("mouseover", (event) => { const cell = cellOf(event); if (cell && !held) show(cell); });
  grid.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (!cell) return;
    held = !(held && cell === shown);
    show(cell);
  });
  grid.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const cell = cellOf(event), step = steps[event.key];
    if (!cell || !step) return;
    const line = cell.parentElement, other = grid.tBodies[0].rows[line.sectionRowIndex + step[0]];
    const next = other && other.cells[cell.cellIndex + step[1]];
    if (next && next.dataset.cell) { event.preventDefault(); held = true; show(next); next.focus(); }
  });
  const frame = grid.parentElement;
  frame.scrollLeft = frame.scrollWidth; // the end of the prompt is where its answer is
  const first = grid.tBodies[0].rows[0].cells[width];
  if (window.matchMedia("(min-width: 62rem)").matches) show(first); else first.tabIndex = 0;
})();
