// Elements and axes. Text goes in as text nodes only, so that no name of the data can become markup.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function mark(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const fixed = (value, digits) => value.toFixed(digits);
const percent = (value) => `${fixed(100 * value, 1)} %`;

// Round steps of 1, 2 or 5 within a domain, some `count` of them.
function ticksOf([low, high], count = 5) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function digitsOf(ticks) {
  return Math.max(0, ...ticks.map((tick) => (String(tick).split(".")[1] || "").length));
}

// A frame with axes: `x` and `y` have a domain, a label, and may have ticks ([place, text]) of their own.
function frame({ width, height, x, y, title = "", headroom = 0, label }) {
  const ticksOn = (axis, count) => {
    if (axis.ticks) return axis.ticks;
    const ticks = ticksOf(axis.domain, count);
    return ticks.map((tick) => [tick, fixed(tick, digitsOf(ticks))]);
  };
  const xs = ticksOn(x, Math.max(2, Math.floor(width / 85)));
  const ys = ticksOn(y, Math.max(3, Math.floor(height / 50)));
  const widest = Math.max(0, ...ys.map(([, text]) => text.length));
  const left = 14 + widest * 7 + (y.label ? 14 : 0);
  const top = (title ? 26 : 10) + headroom;
  const right = width - (x.room || 10);
  const bottom = height - (x.label ? 40 : 24);
  const [x0, x1] = x.domain;
  const [y0, y1] = y.domain;
  const sx = (value) => left + ((value - x0) / (x1 - x0)) * (right - left);
  const sy = (value) => bottom - ((value - y0) / (y1 - y0)) * (bottom - top);
  const svg = mark("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  for (const [tick, text] of ys) {
    svg.append(
      mark("path", { class: "gridline", d: `M${left} ${sy(tick).toFixed(1)}H${right}` }),
      mark("text", { x: left - 6, y: sy(tick) + 4, "text-anchor": "end" }, text),
    );
  }
  for (const [tick, text] of xs) {
    svg.append(
      mark("path", { class: "axis", d: `M${sx(tick).toFixed(1)} ${bottom}v4` }),
      mark("text", { x: sx(tick), y: bottom + 17, "text-anchor": "middle" }, text),
    );
  }
  svg.append(mark("path", { class: "axis", d: `M${left} ${bottom}H${right}` }));
  if (x.label) svg.append(mark("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, x.label));
  if (y.label) {
    const middle = (top + bottom) / 2;
    svg.append(mark("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, y.label));
  }
  if (title) svg.append(mark("text", { class: "title", x: left, y: 14 }, title));
  // What runs out of the frame, such as the loss of the first epoch, is cut off.
  const clip = `clip-${(frame.count = (frame.count || 0) + 1)}`;
  svg.append(
    mark("clipPath", { id: clip }, mark("rect", { x: left, y: top - 3, width: right - left + 3, height: bottom - top + 6 })),
  );
  const inside = mark("g", { "clip-path": `url(#${clip})` });
  svg.append(inside);
  return { svg, inside, sx, sy, left, right, top, bottom };
}

function line(points, sx, sy) {
  return points.map(([x, y], k) => `${k ? "L" : "M"}${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`).join("");
}

function area(xs, lows, highs, sx, sy) {
  const there = xs.map((x, k) => [x, highs[k]]);
  const back = xs.map((x, k) => [x, lows[k]]).reverse();
  return `${line(there, sx, sy)}${line(back, sx, sy).replace("M", "L")}Z`;
}

const pairs = (xs, ys) => xs.map((x, k) => [x, ys[k]]);
const DASHES = [null, "7 3", "2 2.5", "9 3 2 3", "12 3", "4 2", "1.5 3", "6 2 1.5 2 1.5 2"];

// The look of the k-th of several rows: a colour, and a dash that is told apart in grey too.
function look(k) {
  return { colour: k % 8, dash: DASHES[(k + Math.floor(k / 8) * 3) % DASHES.length] };
}

function swatch(k) {
  const { colour, dash } = look(k);
  return mark(
    "svg",
    { width: 34, height: 10, "aria-hidden": "true", class: "plotless" },
    mark("path", { class: `s${colour}`, d: "M1 5H33", "stroke-width": 2.4, "stroke-dasharray": dash }),
  );
}

// Draws now, and again whenever the place has another width, so that text keeps its size.
function drawn(place, draw) {
  let width = 0;
  const again = () => {
    width = Math.round(place.clientWidth);
    place.replaceChildren(...draw(width || 600));
  };
  new ResizeObserver(() => {
    // In the next frame: what is drawn within the observer's own call would be told of again in vain.
    requestAnimationFrame(() => {
      if (Math.abs(place.clientWidth - width) > 8) again();
    });
  }).observe(place);
  again();
  return again;
}

// Columns of a place that lays its figures out side by side where there is room.
function columnWidth(width) {
  return window.matchMedia("(min-width: 46rem)").matches ? Math.floor((width - 40) / 2) : width;
}

function choice(words, options, chosen, onChange) {
  const select = element(
    "select",
    {},
    ...options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)),
  );
  select.addEventListener("change", () => onChange(Number(select.value)));
  return [element("label", {}, `${words} `, select), select];
}

function tick(words, checked, onChange) {
  const box = element("input", { type: "checkbox", checked });
  box.addEventListener("change", () => onChange(box.checked));
  return element("label", {}, box, words);
}

// An evaluated row by its name, and by the seed whose head is drawn.
function nameOf(data, one) {
  return data.rows[one.row].name + (one.seed === null ? "" : ` (seed ${one.seed})`);
}

function figure(svg, caption) {
  return element("figure", {}, svg, ...(caption ? [element("figcaption", {}, caption)] : []));
}
