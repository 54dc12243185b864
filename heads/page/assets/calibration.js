// Reliability: mean probability of like images against how often it comes true, with how many they are.

function startCalibration(data) {
  const place = document.getElementById("calibration-plots");
  const every = data.evaluations.filter((one) => one.binary);
  if (!place || !every.length) return;
  let one = every[0];
  const again = drawn(place, (width) => {
    const each = Math.min(columnWidth(width), 480);
    const { reliability, reliability_scaled: scaled, temperature } = one.binary;
    return [
      reliabilityPlot(data, one, reliability, "as they are", each),
      reliabilityPlot(data, one, scaled, `at temperature ${fixed(temperature, 2)}, fitted on val`, each),
    ];
  });
  const tools = document.getElementById("calibration-tools");
  const [label] = choice("Row", every.map((other, k) => [k, nameOf(data, other)]), every.indexOf(one), (k) => {
    one = every[k];
    again();
  });
  tools.append(label);
  tools.hidden = false;
}

function reliabilityPlot(data, one, bins, how, width) {
  const { svg, inside, sx, sy, top, bottom, left } = frame({
    width,
    height: width,
    x: { domain: [0, 1], label: `mean probability of ${data.positive}`, ticks: UNIT },
    y: { domain: [0, 1], label: `share that is ${data.positive}`, ticks: UNIT },
    title: `Probabilities ${how}`,
    headroom: 22,
    label: `${nameOf(data, one)}, probabilities ${how}: ${bins.map((bin) => `${fixed(bin.probability, 2)} comes true in ${fixed(bin.positive, 2)} of ${bin.n}`).join("; ")}`,
  });
  inside.append(mark("path", { class: "guide", d: line([[0, 0], [1, 1]], sx, sy) }));
  let last = -Infinity;
  for (const bin of bins) {
    const x = sx(bin.probability);
    inside.append(
      mark("path", { class: "whisker s0", d: `M${x.toFixed(1)} ${sy(bin.low).toFixed(1)}V${sy(bin.high).toFixed(1)}` }),
      mark("circle", { class: "f0", cx: x, cy: sy(bin.positive), r: 3.5 }),
      mark("path", { class: "axis", d: `M${x.toFixed(1)} ${bottom}v-6` }),
    );
    if (x - last > 26) {
      svg.append(mark("text", { x, y: top - 10, "text-anchor": "middle" }, String(bin.n)));
      last = x;
    }
  }
  svg.append(mark("text", { x: left - 16, y: top - 10, "text-anchor": "end" }, "n"));
  const n = bins.reduce((sum, bin) => sum + bin.n, 0);
  const counts = [...new Set(bins.map((bin) => bin.n))].sort((a, b) => a - b);
  const each = counts.length > 1 ? `${counts[0]} to ${counts.at(-1)}` : counts[0];
  return figure(svg, `${nameOf(data, one)}: ${bins.length} bins of ${each} images each, ${n} in all; the diagonal is perfect calibration. Above stand the images of a bin, where there is room.`);
}
