// Learning curves of any row, all its seeds; and of every row at a glance.

function startLearning(data) {
  const rows = data.rows.map((row, number) => ({ ...row, number })).filter((row) => row.curves.length);
  const place = document.getElementById("learning-plots");
  const words = document.getElementById("learning-words");
  if (!rows.length) {
    words.textContent = "There are only ensembles here, which are not trained themselves.";
    return;
  }
  // Evaluations begin with the selected row and go on with what val ranks first.
  const evaluated = new Map(data.evaluations.map((one, k) => [one.row, k]));
  const rank = (one) => evaluated.get(one.number) ?? Infinity;
  let row = rows.reduce((best, one) => (rank(one) < rank(best) ? one : best));
  let seeds = true;

  const draw = (width) => {
    const each = columnWidth(width);
    return [
      learningPlot(row, "loss", "cross-entropy", each, seeds),
      learningPlot(row, "accuracy", "accuracy, %", each, seeds),
    ];
  };
  const again = drawn(place, draw);
  const tools = document.getElementById("learning-tools");
  const [label, select] = choice("Row", rows.map((one) => [one.number, one.name]), row.number, (number) => pick(number));
  tools.append(label);
  if (rows.some((one) => one.curves.length > 1)) {
    tools.append(tick("all seeds", seeds, (on) => { seeds = on; again(); }));
  }
  tools.hidden = false;

  const overview = document.getElementById("learning-overview");
  const few = rows.length <= 60 ? rows : rows.filter((one) => evaluated.has(one.number));
  const buttons = few.map((one) => {
    const button = element("button", { type: "button" }, miniPlot(one), one.name);
    button.addEventListener("click", () => pick(one.number));
    return [one.number, button];
  });
  if (few.length > 1) {
    overview.append(
      element("h3", {}, few.length < rows.length ? `${few.length} of ${rows.length} rows at a glance` : "All rows at a glance"),
      element("p", { class: "reading" }, "Loss of train (dashed) and val (solid) over the epochs, one scale for all; the dot is the kept epoch. Press one to see it above."),
      element("div", { class: "minis" }, ...buttons.map(([, button]) => button)),
    );
  }
  function miniPlot(one) {
    const curve = one.curves[one.kept];
    const [width, height] = [150, 62];
    const longest = Math.max(...few.map((other) => other.curves[other.kept].val_loss.length));
    const top = Math.max(quantile(few.flatMap((other) => other.curves[other.kept].val_loss), 0.98), 1e-3) * 1.1;
    const sx = (x) => 2 + ((x - 1) / Math.max(longest - 1, 1)) * (width - 4);
    const sy = (y) => Math.max(2, height - 2 - (y / top) * (height - 4));
    const of = (values) => line(values.map((y, k) => [k + 1, y]), sx, sy);
    return mark(
      "svg",
      { class: "plot", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      mark("path", { class: "axis", d: `M1 ${height - 1}H${width}` }),
      mark("path", { class: "curve s-train", d: of(curve.train_loss), "stroke-dasharray": "4 2" }),
      mark("path", { class: "curve s-val", d: of(curve.val_loss) }),
      mark("circle", { class: "f-val", cx: sx(curve.best + 1), cy: sy(curve.val_loss[curve.best]), r: 3 }),
    );
  }
  function pick(number) {
    row = rows.find((one) => one.number === number);
    select.value = String(number);
    for (const [other, button] of buttons) button.setAttribute("aria-pressed", String(other === number));
    words.textContent = learningWords(row);
    again();
  }
  pick(row.number);
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function learningPlot(row, figureName, label, width, seeds) {
  const scale = figureName === "accuracy" ? 100 : 1;
  const curves = seeds ? row.curves : [row.curves[row.kept]];
  const kept = row.curves[row.kept];
  const of = (curve, split) => curve[`${split}_${figureName}`].map((y, k) => [k + 1, y * scale]);
  const every = curves.flatMap((curve) => [...of(curve, "train"), ...of(curve, "val")].map(([, y]) => y));
  const longest = Math.max(2, ...curves.map((curve) => curve.val_loss.length));
  // The first epochs may stand far off: the frame is for what comes after.
  const domain = figureName === "loss"
    ? [0, Math.max(quantile(every, 0.985), 1e-3) * 1.05]
    : [Math.min(95, Math.floor(quantile(every, 0.015) / 5) * 5), 100];
  const best = kept.best + 1;
  const epochs = ticksOf([1, longest], Math.max(3, Math.floor(width / 85))).filter(Number.isInteger);
  const told = learningWords(row);
  const { svg, inside, sx, sy, top, bottom, right } = frame({
    width,
    height: Math.round(Math.min(320, Math.max(230, width * 0.62))),
    x: { domain: [1, longest], label: "epoch", room: 44, ticks: epochs.map((epoch) => [epoch, String(epoch)]) },
    y: { domain, label },
    label: `${label} of train and val by epoch. ${told}`,
  });
  const [train, val] = [of(kept, "train"), of(kept, "val")];
  inside.append(mark("path", { class: "band f-val", d: area(...worse(train, val, figureName === "loss"), sx, sy) }));
  for (const curve of curves) {
    const thin = curve === kept ? "" : " thin";
    inside.append(
      mark("path", { class: `curve s-train${thin}`, d: line(of(curve, "train"), sx, sy), "stroke-dasharray": "6 3" }),
      mark("path", { class: `curve s-val${thin}`, d: line(of(curve, "val"), sx, sy) }),
    );
  }
  svg.append(
    mark("path", { class: "guide", d: `M${sx(best)} ${top}V${bottom}` }),
    mark("circle", { class: "f-val", cx: sx(best), cy: sy(val[best - 1][1]), r: 4 }),
    mark("text", { x: sx(best) + (sx(best) > right - 90 ? -6 : 6), y: top + 8, "text-anchor": sx(best) > right - 90 ? "end" : "start" }, `kept: epoch ${best}`),
  );
  // Names at the ends of their lines, kept apart.
  const ends = [["train", train.at(-1)], ["val", val.at(-1)]].map(([name, [x, y]]) => ({ name, x: sx(x), y: sy(y) }));
  if (Math.abs(ends[0].y - ends[1].y) < 14) {
    const middle = (ends[0].y + ends[1].y) / 2;
    const up = ends[0].y <= ends[1].y ? 0 : 1;
    ends[up].y = middle - 7;
    ends[1 - up].y = middle + 7;
  }
  for (const end of ends) svg.append(mark("text", { class: `t-${end.name}`, x: end.x + 6, y: Math.min(end.y + 4, bottom) }, end.name));
  const others = row.curves.length > 1 ? `; ${seeds ? "bold" : "here"} is seed ${kept.seed}, the lowest val loss of ${row.curves.length}` : "";
  return figure(svg, `${figureName === "loss" ? "Loss" : "Accuracy"}: train dashed, val solid, shaded where val is the worse${others}.`);
}

// Where val is worse than train: xs, train's line, and val's where it is the worse; both meet where the lines cross.
function worse(train, val, more) {
  const [xs, from, to] = [[], [], []];
  const put = (x, a, b) => {
    xs.push(x);
    from.push(a);
    to.push(more ? Math.max(a, b) : Math.min(a, b));
  };
  train.forEach(([x, a], k) => {
    const b = val[k][1];
    if (k) {
      const [x0, a0, b0] = [...train[k - 1], val[k - 1][1]];
      if ((a0 - b0) * (a - b) < 0) {
        const share = (a0 - b0) / (a0 - b0 - (a - b));
        put(x0 + share * (x - x0), a0 + share * (a - a0), a0 + share * (a - a0));
      }
    }
    put(x, a, b);
  });
  return [xs, from, to];
}

function learningWords(row) {
  const { val_loss: val, train_loss: train, best, seed, stopped } = row.curves[row.kept];
  const last = val.length - 1;
  const rise = val[last] - val[best];
  const gap = val[best] - train[best];
  const why = stopped === "patience" ? "val loss no longer fell" : stopped === "epochs" ? "its epochs were used up" : "a figure was not finite";
  const after = last === best
    ? "The last epoch was the best: it might have learned on."
    : `By the last epoch val loss stood ${fixed(rise, 3)} above its lowest, ${fixed(val[best], 3)}, while train loss went from ${fixed(train[best], 3)} to ${fixed(train[last], 3)}.`;
  const apart = `${fixed(Math.abs(gap), 3)} ${gap >= 0 ? "above" : "below"}`;
  return `${row.name}, seed ${seed}: ${val.length} epochs, until ${why}; epoch ${best + 1} was kept, where val loss stood ${apart} train loss. ${after}`;
}
