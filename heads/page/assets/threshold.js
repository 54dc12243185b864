// The operating point: what a threshold does on test, live, beside the points that val chose.

function startThreshold(data) {
  const body = document.getElementById("threshold-body");
  const every = data.evaluations.filter((one) => one.binary);
  if (!body || !every.length) return;
  let one = every[0];
  let at = one.binary.chosen[0].at;
  const shareOf = (binary) => binary.positives / (binary.positives + binary.negatives);
  let prevalence = shareOf(one.binary);

  const [label] = choice("Row", every.map((other, k) => [k, nameOf(data, other)]), every.indexOf(one), (k) => {
    // The same threshold, as near as the other row has it; its own chosen points have places of their own.
    const value = one.binary.thresholds.value[at];
    one = every[k];
    at = nearest(one.binary.thresholds.value, value);
    slider.max = one.binary.thresholds.value.length - 1;
    offer();
    show();
  });
  const amount = element("input", { type: "number", min: 0.1, max: 99.9, step: 0.1, id: "prevalence" });
  amount.value = fixed(100 * prevalence, 1);
  const refused = element("span", { id: "prevalence-refused", role: "status" });
  amount.setAttribute("aria-describedby", refused.id);
  const settle = () => {
    const value = Number(amount.value) / 100;
    const sound = value > 0 && value < 1;
    amount.setAttribute("aria-invalid", String(!sound));
    refused.textContent = sound ? "" : `A prevalence lies between 0 and 100 %; shown is ${percent(prevalence)}.`;
    if (sound) {
      prevalence = value;
      show();
    }
  };
  amount.addEventListener("input", settle);
  const asTest = element("button", { type: "button" }, "as on test");
  asTest.addEventListener("click", () => {
    prevalence = shareOf(one.binary);
    amount.value = fixed(100 * prevalence, 1);
    amount.setAttribute("aria-invalid", "false");
    refused.textContent = "";
    show();
  });
  const tools = document.getElementById("threshold-tools");
  tools.append(label, element("label", {}, "Prevalence, % ", amount), asTest, refused);
  tools.hidden = false;

  const value = element("output", { id: "threshold-value", for: "threshold-slider" });
  const slider = element("input", { type: "range", id: "threshold-slider", min: 0, max: one.binary.thresholds.value.length - 1, step: 1 });
  slider.addEventListener("input", () => {
    at = Number(slider.value);
    show();
  });
  const chosen = element("div", { class: "chosen", role: "group", "aria-label": "Thresholds fixed before test was opened" });
  const plots = element("div", { class: "plots two" });
  const table = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Figures at thresholds" });
  const matrix = element("div");
  const status = element("p", { class: "reading", role: "status" });
  body.append(
    element("label", { for: "threshold-slider" }, "Threshold of the probability of ", data.positive, ": ", value),
    slider,
    chosen,
    element("div", { class: "beside" }, table, matrix),
    status,
    plots,
  );

  function offer() {
    chosen.replaceChildren(
      ...one.binary.chosen.map((point) => {
        const button = element("button", { type: "button", "data-at": point.at }, pointName(one, point));
        button.addEventListener("click", () => {
          at = point.at;
          show();
        });
        return button;
      }),
    );
  }
  const draw = drawn(plots, (width) => [
    tradePlot(data, one, at, columnWidth(width)),
    histogramPlot(data, one, one.binary.thresholds.value[at], columnWidth(width)),
  ]);

  function show() {
    const threshold = one.binary.thresholds.value[at];
    slider.value = String(at);
    slider.setAttribute("aria-valuetext", fixed(threshold, 4));
    value.textContent = fixed(threshold, 4);
    for (const button of chosen.children) button.setAttribute("aria-pressed", String(Number(button.dataset.at) === at));
    table.replaceChildren(figuresTable(one, at, prevalence));
    matrix.replaceChildren(confusionTable(data, one, at));
    const found = figuresAt(one.binary, at, prevalence);
    status.textContent = `${nameOf(data, one)}. Predictive values are for a prevalence of ${percent(prevalence)}; test's own is ${percent(shareOf(one.binary))}. `
      + `At ${fixed(threshold, 4)}: ${found.tp + found.fp} of ${one.binary.positives + one.binary.negatives} films are called ${data.positive}.`;
    draw();
  }
  offer();
  show();
}

const nearest = (values, wanted) => values.reduce((best, value, k) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? k : best), 0);

// The rules that chose a point on val; none of the one at 0.5 that nothing chose.
const rulesOf = (point) => point.rules.filter((rule) => rule !== "0.5").join(", ");

function pointName(one, point) {
  const rules = rulesOf(point);
  return rules ? `${rules} on val: ${fixed(one.binary.thresholds.value[point.at], 3)}` : "0.5";
}

// Figures of a threshold, each as [value, low, high]; null where it is undefined.
function figuresAt(binary, at, prevalence) {
  const { positives, negatives, thresholds } = binary;
  const [tp, fp] = [thresholds.tp[at], thresholds.fp[at]];
  const [sensitivity, specificity] = [tp / positives, 1 - fp / negatives];
  const odds = prevalence / (1 - prevalence);
  // With the odds of the prevalence PPV / (1 - PPV) grows in proportion, so the ends of an interval go along.
  const moved = (even, by) => (even === null ? null : even >= 1 ? 1 : (by * even) / (1 - even + by * even));
  const interval = (value, [low, high]) => (low[at] === null || Number.isNaN(value) ? null : [value, low[at], high[at]]);
  const predictive = (even, [low, high], by) => (low[at] === null || Number.isNaN(even) ? null : [even, low[at], high[at]].map((end) => moved(end, by)));
  return {
    tp,
    fp,
    fn: positives - tp,
    tn: negatives - fp,
    accuracy: interval((100 * (tp + negatives - fp)) / (positives + negatives), thresholds.accuracy),
    sensitivity: interval(sensitivity, thresholds.sensitivity),
    specificity: interval(specificity, thresholds.specificity),
    ppv: predictive(sensitivity / (sensitivity + 1 - specificity), thresholds.ppv_even, odds),
    npv: predictive(specificity / (specificity + 1 - sensitivity), thresholds.npv_even, 1 / odds),
  };
}

function figuresTable(one, at, prevalence) {
  const head = ["", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV", "Accuracy at test's mix, %"];
  const row = (name, place, live) => {
    const found = figuresAt(one.binary, place, prevalence);
    const cell = (of, digits = 3) => element(
      "td",
      { class: "figure" },
      ...(of === null ? ["–"] : [fixed(of[0], digits), " ", element("span", { class: "interval" }, `(${fixed(of[1], digits)}–${fixed(of[2], digits)})`)]),
    );
    return element(
      "tr",
      { class: live ? "live" : null },
      element("th", { scope: "row" }, name),
      element("td", { class: "figure" }, fixed(one.binary.thresholds.value[place], 4)),
      cell(found.sensitivity),
      cell(found.specificity),
      cell(found.ppv),
      cell(found.npv),
      cell(found.accuracy, 1),
    );
  };
  const points = one.binary.chosen.map((point) => {
    const rules = rulesOf(point);
    return row(rules ? `${rules} (val)` : "0.5", point.at, false);
  });
  return element(
    "table",
    { class: "now", id: "threshold-figures" },
    element("thead", {}, element("tr", {}, ...head.map((text, k) => (text ? element("th", { scope: "col", class: k ? "figure" : null }, text) : element("td"))))),
    element("tbody", {}, row("the slider", at, true), ...points),
  );
}

function confusionTable(data, one, at) {
  const { tp, fp, fn, tn } = figuresAt(one.binary, at, 0.5);
  const negative = data.classes.find((name) => name !== data.positive);
  const cell = (count, of, right) => element(
    "td",
    { class: right ? "right" : null },
    String(count),
    " ",
    element("span", { class: "interval" }, of ? `${fixed((100 * count) / of, 1)} % of row` : "–"),
  );
  return element(
    "table",
    { class: "matrix", id: "threshold-confusion" },
    element("caption", {}, "Test images by truth (rows) and decision at the slider (columns)"),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "truth"), element("th", { scope: "col" }, `called ${negative}`), element("th", { scope: "col" }, `called ${data.positive}`))),
    element(
      "tbody",
      {},
      element("tr", {}, element("th", { scope: "row" }, negative), cell(tn, tn + fp, true), cell(fp, tn + fp, false)),
      element("tr", {}, element("th", { scope: "row" }, data.positive), cell(fn, tp + fn, false), cell(tp, tp + fn, true)),
    ),
  );
}

const logit = (p) => Math.log(p / (1 - p));

// Sensitivity and specificity by threshold, on the scale of log-odds: a sure head's thresholds crowd at 0 and 1.
function tradePlot(data, one, at, width) {
  const { thresholds, positives, negatives, chosen } = one.binary;
  const inside01 = thresholds.value.map((value) => Math.min(Math.max(value, 1e-4), 1 - 1e-4));
  const xs = inside01.map(logit);
  const ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999].map((tick) => [logit(tick), String(tick)]);
  const domain = [Math.min(xs[0], logit(0.0005)), Math.max(xs.at(-1), logit(0.9995))];
  const sensitivity = thresholds.tp.map((tp) => tp / positives);
  const specificity = thresholds.fp.map((fp) => 1 - fp / negatives);
  const { svg, inside, sx, sy, top, bottom, right } = frame({
    width,
    height: Math.round(Math.min(320, Math.max(240, width * 0.6))),
    x: { domain, label: "threshold (log-odds scale)", ticks, room: 12 },
    y: { domain: [0, 1], label: "share of its class found", ticks: UNIT },
    label: `${nameOf(data, one)}: sensitivity and specificity on test by threshold`,
  });
  inside.append(
    mark("path", { class: "band f0", d: area(xs, ...thresholds.sensitivity, sx, sy) }),
    mark("path", { class: "band f1", d: area(xs, ...thresholds.specificity, sx, sy) }),
    mark("path", { class: "curve s0", d: line(pairs(xs, sensitivity), sx, sy) }),
    mark("path", { class: "curve s1", d: line(pairs(xs, specificity), sx, sy), "stroke-dasharray": "7 3" }),
  );
  for (const point of chosen) inside.append(mark("path", { class: "guide", d: `M${sx(xs[point.at]).toFixed(1)} ${top}V${bottom}` }));
  inside.append(
    mark("path", { class: "here", d: `M${sx(xs[at]).toFixed(1)} ${top}V${bottom}` }),
    mark("circle", { class: "f0", r: 4, cx: sx(xs[at]), cy: sy(sensitivity[at]) }),
    mark("circle", { class: "f1", r: 4, cx: sx(xs[at]), cy: sy(specificity[at]) }),
  );
  svg.append(
    mark("text", { x: sx(domain[0]) + 6, y: sy(sensitivity[0]) + 16 }, "sensitivity"),
    mark("text", { x: right - 4, y: sy(specificity.at(-1)) + 16, "text-anchor": "end" }, "specificity"),
  );
  return figure(svg, "Sensitivity (solid) and specificity (dashed) on test with 95 % bands; the full line is the slider, dotted ones are the fixed points.");
}

function histogramPlot(data, one, threshold, width) {
  const [negative, positive] = one.binary.histogram;
  const most = Math.max(...negative, ...positive, 1);
  const other = data.classes.find((name) => name !== data.positive);
  // Counts by their square root: a sure head has nearly all films in the outer bins, and the few between matter.
  const height = (count, sign) => sign * Math.sqrt(count);
  const top = Math.ceil(Math.sqrt(most) * 1.12);
  const marks = [0, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000].filter((count) => Math.sqrt(count) <= top);
  const spaced = marks.filter((count, k) => k === 0 || count >= most / 15);
  const ticks = spaced.flatMap((count) => (count ? [[Math.sqrt(count), String(count)], [-Math.sqrt(count), String(count)]] : [[0, "0"]]));
  const { svg, inside, sx, sy, top: up, bottom, left } = frame({
    width,
    height: Math.round(Math.min(320, Math.max(240, width * 0.6))),
    x: { domain: [0, 1], label: `probability of ${data.positive}`, ticks: UNIT },
    y: { domain: [-top, top], label: "images (√ scale)", ticks },
    label: `${nameOf(data, one)}: test images by probability in ${data.bins} bins; ${data.positive}: ${positive.join(", ")}; ${other}: ${negative.join(", ")}`,
  });
  const bar = (k, count, sign, style) => {
    const [from, to] = [sx(k / data.bins) + 0.75, sx((k + 1) / data.bins) - 0.75];
    const [a, b] = [sy(0), sy(height(count, sign))].sort((m, n) => m - n);
    return mark("rect", { class: style, x: from.toFixed(1), y: a.toFixed(1), width: (to - from).toFixed(1), height: Math.max(b - a, 0).toFixed(1) });
  };
  positive.forEach((count, k) => inside.append(bar(k, count, 1, "f0")));
  negative.forEach((count, k) => inside.append(bar(k, count, -1, "f1 pale")));
  inside.append(
    mark("path", { class: "axis", d: `M${left} ${sy(0)}H${sx(1)}` }),
    mark("path", { class: "here", d: `M${sx(threshold).toFixed(1)} ${up}V${bottom}` }),
  );
  svg.append(
    mark("text", { x: left + 8, y: up + 12 }, `truth: ${data.positive}`),
    mark("text", { x: left + 8, y: bottom - 8 }, `truth: ${other}`),
  );
  return figure(svg, `Probabilities on test by truth, ${one.binary.positives} above and ${one.binary.negatives} below; right of the line is called ${data.positive}.`);
}
