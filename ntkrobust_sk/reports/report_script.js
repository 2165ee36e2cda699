"use strict";
const NS = "http://www.w3.org/2000/svg";
const draw = (parent, name, attributes, text) => {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
};

// What a figure says at a place. A reader is {size: [columns, rows], at(x, y), mark(column, row), text(column, row)},
// with x and y, and the mark's [left, top, width, height], as shares of the drawing.
const tip = document.getElementById("tip");
const reading = (plot, reader) => {
  const svg = plot.querySelector("svg");
  let place = null, mark = null;
  const hide = () => { tip.hidden = true; if (mark) mark.remove(); mark = null; };
  const show = found => {
    if (!found) return hide();
    place = found;
    if (mark) mark.remove();
    const view = svg.viewBox.baseVal, [left, top, width, height] = reader.mark(...place);
    mark = draw(svg, "rect", {class: "mark", x: view.x + left * view.width, y: view.y + top * view.height,
      width: Math.max(width * view.width, .01), height: height * view.height, "vector-effect": "non-scaling-stroke"});
    tip.textContent = reader.text(...place);
    tip.hidden = false;
    const around = svg.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const x = around.left + (left + width) * around.width + 10, y = around.top + top * around.height;
    tip.style.left = `${Math.max(8, Math.min(x, innerWidth - own.width - 8))}px`;
    tip.style.top = `${Math.max(8, Math.min(y, innerHeight - own.height - 8))}px`;
  };
  const pointed = event => {
    const around = svg.getBoundingClientRect();
    show(reader.at((event.clientX - around.left) / around.width, (event.clientY - around.top) / around.height));
  };
  for (const name of ["pointermove", "pointerdown"]) plot.addEventListener(name, pointed);
  for (const name of ["pointerleave", "blur"]) plot.addEventListener(name, hide);
  plot.addEventListener("keydown", event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    const [columns, rows] = reader.size();
    show(place ? [Math.max(0, Math.min(place[0] + step[0], columns - 1)), Math.max(0, Math.min(place[1] + step[1], rows - 1))] : [0, 0]);
  });
};
const nearest = (places, x) => places.reduce((best, at, i) => Math.abs(at - x) < Math.abs(places[best] - x) ? i : best, 0);
const readerOf = ({box: [left, top, width, height], points, cells}) => points ? {
  size: () => [points.length, 1],
  at: x => [nearest(points.map(point => point[0]), x), 0],
  mark: column => [points[column][0], top, 0, height],
  text: column => points[column][1],
} : {
  size: () => [cells.columns.length, cells.rows.length],
  at: (x, y) => {
    const column = Math.floor((x - left) / width * cells.columns.length), row = Math.floor((y - top) / height * cells.rows.length);
    return column in cells.columns && row in cells.rows ? [column, row] : null;
  },
  mark: (column, row) => [left + column * width / cells.columns.length, top + row * height / cells.rows.length,
                          width / cells.columns.length, height / cells.rows.length],
  text: (column, row) => [cells.rows[row], cells.columns[column], cells.values[row][column]].filter(Boolean).join("\n"),
};
for (const plot of document.querySelectorAll("[data-hover]")) reading(plot, readerOf(JSON.parse(plot.dataset.hover)));

// The kernel, epoch by epoch.
(() => {
  const data = JSON.parse(document.getElementById("evolution").textContent);
  const slider = document.getElementById("epoch"), shown = document.getElementById("epoch-shown");
  const plot = document.getElementById("spectrum");
  const W = 440, H = 290, L = 58, R = 12, T = 12, B = 48, FLOOR = 1e-6;
  const make = (name, attributes, text) => draw(plot, name, attributes, text);
  const label = {"font-size": 15, fill: "currentColor"}, middle = {...label, "text-anchor": "middle"};
  const fixed = (value, digits) => value === null ? "not finite" : value.toFixed(digits);
  const size = Math.max(...data.regimes.map(r => r.spectra[0].length));
  const x = i => L + (W - L - R) * Math.log(i) / Math.log(Math.max(2, size));
  const y = v => T + (H - T - B) * Math.log(Math.max(v, FLOOR)) / Math.log(FLOOR);
  const at = regime => Math.min(Number(slider.value), regime.spectra.length - 1);
  plot.setAttribute("viewBox", `0 0 ${W} ${H}`);
  for (let power = 0; power >= -6; power -= 2) {
    make("line", {x1: L, x2: W - R, y1: y(10 ** power), y2: y(10 ** power), stroke: "currentColor", opacity: .15});
    const tick = make("text", {...label, x: L - 8, y: y(10 ** power) + 5, "text-anchor": "end"}, power === 0 ? "1" : "10");
    if (power) draw(tick, "tspan", {"font-size": 11, dy: -6}, `−${-power}`);
  }
  for (const i of [1, 3, 10, 30, 100]) if (i <= size) make("text", {...middle, x: x(i), y: H - B + 20}, i);
  make("text", {...middle, x: (L + W - R) / 2, y: H - 6}, "index of the eigenvalue");
  const lines = data.regimes.map(r => make("polyline", {fill: "none", "stroke-width": 2.5, style: `stroke: var(--${r.name})`,
    ...(r.name === "flip" ? {"stroke-dasharray": "7 5"} : {})}));
  const show = () => {
    const epoch = data.epochs[Number(slider.value)];
    shown.textContent = `epoch ${epoch}`;
    slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
    data.regimes.forEach((regime, number) => {
      const state = at(regime), image = document.getElementById(`kernel-${regime.name}`);
      image.src = regime.kernels[state];
      image.alt = `Kernel of the ${regime.name} network at epoch ${regime.epochs[state]}, examples sorted by class`;
      document.getElementById(`rank-${regime.name}`).textContent =
        `effective rank ${fixed(regime.ranks[state], 1)}, robust accuracy ${fixed(regime.robust[state], 3)}`;
      lines[number].setAttribute("points", regime.spectra[state].map((v, i) => `${x(i + 1)},${y(v)}`).join(" "));
    });
    plot.setAttribute("aria-label", `Kernel spectra at epoch ${epoch}: ` + data.regimes.map(r =>
      `${r.name}, effective rank ${fixed(r.ranks[at(r)], 1)}`).join("; "));
  };
  const places = Array.from({length: size}, (_, i) => x(i + 1) / W);
  reading(plot.parentElement, {
    size: () => [size, 1],
    at: share => [nearest(places, share), 0],
    mark: column => [places[column], T / H, 0, (H - T - B) / H],
    text: column => [`eigenvalue ${column + 1}`, ...data.regimes.map(r => {
      const value = r.spectra[at(r)][column];
      return `${r.name} ${value === undefined || value === null ? "none" : value.toPrecision(2)}`;
    })].join("\n"),
  });
  slider.addEventListener("input", show);
  show();
})();

// The section that is being read.
if ("IntersectionObserver" in window) {
  const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  }, {rootMargin: "-10% 0px -80% 0px"});
  for (const section of document.querySelectorAll("main > section")) if (links.has(section.id)) watch.observe(section);
}
