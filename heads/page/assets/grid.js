// The effect of each axis of the grid, as small multiples: val, and test apart and paler.

const FIGURES = [["loss", "Loss", ""], ["accuracy", "Accuracy", ", %"], ["auc", "AUC", ""]];

function startGrid(data) {
  const body = document.getElementById("grid-body");
  const rows = data.rows.filter((row) => Object.keys(row.axes).length);
  const bases = [...new Set(rows.map((row) => row.basis))];
  const names = Object.keys(data.axes).filter((name) => new Set(rows.map((row) => row.axes[name])).size > 1);
  if (!names.length) {
    body.append(element("p", { class: "prose" }, `Nothing was varied but seeds${bases.length > 1 ? " and the split" : ""}.`));
    return;
  }
  // A class without images leaves no AUC.
  const figures = FIGURES.filter(([figureName]) => ["val", "test"].every((split) => rows.some((row) => row[split][figureName])));
  let shown = 0;
  const redraws = [];
  const tools = document.getElementById("grid-tools");
  const [label] = choice("Figure", figures.map(([, words], k) => [k, words]), 0, (k) => {
    shown = k;
    redraws.forEach((again) => again());
  });
  tools.append(label);
  tools.hidden = false;
  for (const name of names) {
    const place = element("div", { class: name === "backbone" ? "plots two" : null });
    body.append(element("h3", { class: "axis-title" }, data.axes[name]), place);
    const draw = name === "backbone"
      // Val figures compare within a split only.
      ? (width) => bases.flatMap((basis) => {
        const mine = rows.filter((row) => row.basis === basis);
        return ["val", "test"].map((split) => backbonePlot(mine, split, figures[shown], columnWidth(width), bases.length > 1 ? basis : ""));
      })
      : (width) => axisPanels(data.axes, rows, name, figures[shown], width);
    redraws.push(drawn(place, draw));
  }
}

const shortName = (name) => name.replace(/^torchvision:/, "").replace(/@[^+ ]*/g, "");
// From the middle: names of a family differ at their ends.
const clipped = (text, most) => (text.length > most ? `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}` : text);
const levelName = (value) => (value === true ? "yes" : value === false ? "no" : typeof value !== "number" ? String(value) : value !== 0 && Math.abs(value) < 0.001 ? Number(value.toPrecision(3)).toExponential().replace("e-", "e−") : String(Number(value.toPrecision(4))));

function domainOf(rows, figureName, splits) {
  const ends = rows.flatMap((row) => splits.map((split) => row[split][figureName]).filter(Boolean).flatMap(({ mean, sd }) => [mean - (sd || 0), mean + (sd || 0)]));
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - margin, high + margin];
}

// A panel a backbone, of val and apart of test; a line joins rows that are alike in all but this axis, split included.
function axisPanels(axes, rows, name, [figureName, words, unit], width) {
  const levels = [...new Set(rows.map((row) => row.axes[name]))].sort((a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b));
  const backbones = [...new Set(rows.map((row) => row.axes.backbone))];
  const others = Object.keys(axes).filter((axis) => axis !== name && axis !== "backbone" && new Set(rows.map((row) => row.axes[axis])).size > 1);
  const several = new Set(rows.map((row) => row.basis)).size > 1;
  const settingOf = (row) => [...others.map((axis) => `${axes[axis]} ${levelName(row.axes[axis])}`), ...(several ? [row.basis] : [])].join(", ");
  const groups = [...grouped(rows, (row) => JSON.stringify([row.basis, { ...row.axes, [name]: null }])).values()];
  const joined = groups.filter((group) => group.length > 1);
  // Where the axis was only varied together with others there is nothing to join, and all rows are points.
  const drawnGroups = joined.length ? joined : groups;
  const settings = joined.length ? [...new Set(joined.map(([row]) => settingOf(row)))] : [""];
  const caption = joined.length
    ? element("div", { class: "keys" }, ...(others.length || several ? settings.map((setting, k) => element("span", {}, swatch(k), setting)) : []))
    : element("p", { class: "reading" }, `No two rows differ in this alone: it was varied together with ${[...others.map((axis) => axes[axis]), ...(several ? ["the split"] : [])].join(", ")}. Each point is a row.`);
  const columns = Math.max(2, Math.min(Math.floor(width / 225), Math.max(backbones.length, 4)));
  const each = Math.floor((width - 16 * (columns - 1)) / columns);
  const every = Math.ceil(levels.length / Math.max(2, Math.floor((each - 60) / 38)));
  const panels = (split) => {
    const domain = domainOf(drawnGroups.flat(), figureName, [split]);
    return backbones.flatMap((backbone) => {
      const mine = drawnGroups.filter(([row]) => row.axes.backbone === backbone);
      if (!mine.length) return [];
      const told = mine.map((group) => group.map((row) => `${row.name}: ${value(row[split][figureName])}`).join("; ")).join("; ");
      const { svg, inside, sx, sy } = frame({
        width: each,
        height: Math.round(Math.min(190, Math.max(140, each * 0.68))),
        x: { domain: [-0.4, levels.length - 0.6], ticks: levels.map((level, k) => [k, levelName(level)]).filter(([k]) => k % every === 0) },
        y: { domain, label: `${words} on ${split}${unit}` },
        title: clipped(shortName(backbone), Math.floor((each - 55) / 7)),
        label: `${words} on ${split} by ${axes[name]} on ${backbone}. ${told}`,
      });
      mine.forEach((group, k) => {
        const style = joined.length ? Math.max(settings.indexOf(settingOf(group[0])), 0) : 0;
        // A little apart, so that deviations do not cover each other.
        const shift = mine.length > 1 ? (k / (mine.length - 1) - 0.5) * (joined.length ? 0.12 : 0.4) : 0;
        const points = group
          .filter((row) => row[split][figureName])
          .map((row) => [levels.indexOf(row.axes[name]) + shift, row[split][figureName]])
          .sort(([a], [b]) => a - b);
        drawPoints(inside, points, split, style, sx, sy);
      });
      return [figure(svg, "")];
    });
  };
  return [caption, ...["val", "test"].map((split) => {
    const place = element("div", { class: split === "test" ? "multiples of-test" : "multiples" }, ...panels(split));
    place.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    return place;
  })];
}

function value(figureOf) {
  return figureOf ? fixed(figureOf.mean, 3) : "undefined";
}

function grouped(rows, key) {
  const groups = new Map();
  for (const row of rows) groups.set(key(row), [...(groups.get(key(row)) || []), row]);
  return groups;
}

function drawPoints(inside, points, split, style, sx, sy) {
  const { colour, dash } = look(style);
  inside.append(mark("path", { class: `curve s${colour}`, d: line(points.map(([x, { mean }]) => [x, mean]), sx, sy), "stroke-dasharray": dash }));
  for (const [x, { mean, sd }] of points) {
    if (sd) inside.append(mark("path", { class: `whisker s${colour}`, d: `M${sx(x).toFixed(1)} ${sy(mean - sd).toFixed(1)}V${sy(mean + sd).toFixed(1)}` }));
    inside.append(mark("circle", { class: split === "val" ? `f${colour}` : `f-paper s${colour}`, "stroke-width": split === "val" ? null : 1.4, cx: sx(x), cy: sy(mean), r: 3 }));
  }
}

// Every configuration a dot beside its backbone.
function backbonePlot(rows, split, [figureName, words, unit], width, basis) {
  const backbones = [...new Set(rows.map((row) => row.axes.backbone))];
  const narrow = width < 420;
  const names = backbones.map((name) => clipped(shortName(name), narrow ? 17 : 24));
  const { svg, inside, sx, sy } = frame({
    width,
    height: 60 + backbones.length * 34,
    x: { domain: domainOf(rows, figureName, [split]), label: `${words} on ${split}${unit}` },
    y: { domain: [backbones.length - 0.5, -0.5], ticks: names.map((name, k) => [k, name]) },
    title: basis ? `${split}, ${basis}` : split,
    label: `${words} on ${split}${basis && `, ${basis},`} by backbone: ${rows.map((row) => `${row.name}: ${value(row[split][figureName])}`).join("; ")}`,
  });
  const layer = mark("g", { class: split === "test" ? "pale" : null });
  backbones.forEach((backbone, k) => {
    const mine = rows.filter((row) => row.axes.backbone === backbone && row[split][figureName]);
    mine.forEach((row, place) => {
      const { mean, sd } = row[split][figureName];
      const y = sy(k + (mine.length > 1 ? (place / (mine.length - 1) - 0.5) * 0.5 : 0));
      if (sd && mine.length <= 10) layer.append(mark("path", { class: `whisker s-${split}`, d: `M${sx(mean - sd).toFixed(1)} ${y.toFixed(1)}H${sx(mean + sd).toFixed(1)}` }));
      layer.append(
        split === "val"
          ? mark("circle", { class: "f-val", cx: sx(mean), cy: y, r: 3 })
          : mark("circle", { class: "f-paper s-test", "stroke-width": 1.4, cx: sx(mean), cy: y, r: 2.8 }),
      );
    });
  });
  inside.append(layer);
  return figure(svg, split === "val" ? "Val: every configuration, its mean over seeds, and their standard deviation where there are few." : "Test, for reading only: the same configurations in the same order.");
}
