// ROC and precision-recall of several rows over each other, with bands.

function startDiscrimination(data) {
  const place = document.getElementById("discrimination-plots");
  const every = data.evaluations.filter((one) => one.binary);
  if (!place || !every.length) return;
  // The selected row, and the best single one by val: the first that is no ensemble.
  const single = every.find((one) => !data.rows[one.row].selected && !data.rows[one.row].ensemble);
  const ticked = new Set([every[0], ...(single ? [single] : [])]);
  let [bands, val, close] = [true, false, false];

  const again = drawn(place, (width) => {
    const each = columnWidth(width);
    const shown = every.filter((one) => ticked.has(one));
    return [rocPlot(data, every, shown, each, bands, val, close), precisionPlot(data, every, shown, each, bands)];
  });
  const rows = document.getElementById("discrimination-rows");
  every.forEach((one, k) => {
    const box = element("input", { type: "checkbox", checked: ticked.has(one) });
    box.addEventListener("change", () => {
      if (box.checked) ticked.add(one);
      else ticked.delete(one);
      again();
    });
    const { auc } = one.binary;
    rows.append(
      element(
        "label",
        {},
        box,
        swatch(k),
        element("span", { class: "what" }, nameOf(data, one) + (data.rows[one.row].selected ? " (selected)" : "")),
        element("span", { class: "interval" }, auc ? `AUC ${ranged(auc, 3)}` : ""),
      ),
    );
  });
  rows.hidden = false;
  const tools = document.getElementById("discrimination-tools");
  tools.append(
    tick("bands", bands, (on) => { bands = on; again(); }),
    tick("ROC closer: its upper left corner", close, (on) => { close = on; again(); }),
    tick("ROC of val too (dotted)", val, (on) => { val = on; again(); }),
  );
  tools.hidden = false;
}

function ranged([value, low, high], digits, scale = 1) {
  return `${fixed(value * scale, digits)} (${fixed(low * scale, digits)}–${fixed(high * scale, digits)})`;
}

const UNIT = [0, 0.2, 0.4, 0.6, 0.8, 1].map((tick) => [tick, fixed(tick, 1)]);

function rocPlot(data, every, shown, width, bands, val, close) {
  const size = Math.min(width, 520);
  const told = shown.map((one) => `${nameOf(data, one)}, AUC ${one.binary.auc ? ranged(one.binary.auc, 3) : "undefined"}`);
  const { svg, inside, sx, sy } = frame({
    width: size,
    height: size,
    x: { domain: [0, close ? 0.4 : 1], label: "1 − specificity" },
    y: { domain: [close ? 0.6 : 0, 1], label: "sensitivity" },
    label: `ROC curves on test: ${told.join("; ") || "no row ticked"}`,
  });
  inside.append(mark("path", { class: "guide", d: line([[0, 0], [1, 1]], sx, sy) }));
  for (const one of shown) {
    const { colour, dash } = look(every.indexOf(one));
    const { roc, roc_band: band, val_roc: ofVal, thresholds, chosen, positives, negatives } = one.binary;
    if (bands) inside.append(mark("path", { class: `band f${colour}`, d: area(...band, sx, sy) }));
    if (val && ofVal) inside.append(mark("path", { class: `curve thin s${colour}`, d: line(pairs(...ofVal), sx, sy), "stroke-dasharray": "1 3" }));
    inside.append(mark("path", { class: `curve s${colour}`, d: line(pairs(...roc), sx, sy), "stroke-dasharray": dash }));
    const half = chosen[0].at;
    inside.append(
      mark("circle", { class: `f-paper s${colour}`, "stroke-width": 1.8, r: 4, cx: sx(thresholds.fp[half] / negatives), cy: sy(thresholds.tp[half] / positives) }),
    );
  }
  const n = shown.length ? shown[0].binary : every[0].binary;
  return figure(svg, `ROC on test, n = ${n.positives} ${data.positive} and ${n.negatives} others; the ring is threshold 0.5, the dotted diagonal is chance.`);
}

function precisionPlot(data, every, shown, width, bands) {
  const size = Math.min(width, 520);
  const n = (shown[0] || every[0]).binary;
  const share = n.positives / (n.positives + n.negatives);
  const lows = shown.flatMap((one) => one.binary.precision_recall[1]);
  const least = Math.min(share, ...lows);
  const floor = Math.max(0, Math.floor(least * 10 - 1e-9) / 10);
  const { svg, inside, sx, sy } = frame({
    width: size,
    height: size,
    x: { domain: [0, 1], label: "recall (sensitivity)", ticks: UNIT },
    y: { domain: [floor, 1], label: "precision (PPV)", },
    label: `Precision-recall curves on test of ${shown.map((one) => nameOf(data, one)).join("; ") || "no row"}`,
  });
  inside.append(mark("path", { class: "guide", d: line([[0, share], [1, share]], sx, sy) }));
  for (const one of shown) {
    const { colour, dash } = look(every.indexOf(one));
    const { precision_recall: curve, precision_recall_band: band, thresholds, chosen, positives } = one.binary;
    if (bands) inside.append(mark("path", { class: `band f${colour}`, d: area(...band, sx, sy) }));
    inside.append(mark("path", { class: `curve s${colour}`, d: line(pairs(...curve), sx, sy), "stroke-dasharray": dash }));
    const [tp, fp] = [thresholds.tp[chosen[0].at], thresholds.fp[chosen[0].at]];
    if (tp) inside.append(mark("circle", { class: `f-paper s${colour}`, "stroke-width": 1.8, r: 4, cx: sx(tp / positives), cy: sy(tp / (tp + fp)) }));
  }
  return figure(svg, `Precision-recall on test, at its share of ${data.positive} of ${percent(share)} (dotted: chance); the ring is threshold 0.5.`);
}
