// What the page shows: elements are made and filled with text, never with markup.

const place = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Never 0 or 100 %: no model is that sure of anything.
export function percent(probability, digits = 1) {
  const value = 100 * probability;
  const least = 10 ** -digits;
  if (value < least) return `< ${least.toFixed(digits)} %`;
  if (value > 100 - least) return `> ${(100 - least).toFixed(digits)} %`;
  return `${value.toFixed(digits)} %`;
}

// As many digits as tell the two apart, so that a decision never seems to contradict them.
function digitsApart(probability, threshold) {
  let digits = 1;
  while (digits < 6 && percent(probability, digits) === percent(threshold, digits)) digits += 1;
  return digits;
}

function list(id, facts) {
  place(id).replaceChildren(
    ...facts.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
}

export function showModel(model) {
  const point = model.operating_point;
  place("which").replaceChildren(
    element("strong", {}, model.name),
    `, fitted on ${model.dataset}; gives the probability of ${model.positive}${point ? `, decided at ${nameOf(point)}` : ""}.`,
  );
  list("model", [
    ["model", model.name],
    ["network", model.backbones.join(", ")],
    ["classes", model.classes.join(", ")],
    ["views averaged", String(model.views)],
    ["temperature", model.temperature.toFixed(3)],
    ["run", model.provenance.run ?? ""],
    ["fingerprint", element("code", {}, model.fingerprint)],
    ["SHA-256", element("code", {}, model.sha256)],
  ]);
  place("figure-rows").replaceChildren(
    ...model.figures.map((one) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, one.name),
        element("td", { class: "figure" }, one.value.toFixed(3)),
        element("td", { class: "figure" }, `${one.low.toFixed(3)}–${one.high.toFixed(3)}`),
      ),
    ),
  );
  place("figures-place").hidden = !model.figures.length;
  place("notes").replaceChildren(...model.notes.map((note) => element("li", {}, note)));
  place("about").hidden = false;
}

// With its sign, unless it is shown as nothing.
function signed(value) {
  const digits = Math.abs(value).toFixed(1);
  return Number(digits) === 0 ? digits : `${value > 0 ? "+" : "−"}${digits}`;
}

const nameOf = (point) => (point.split ? `the threshold set on ${point.split} for ${point.rule}` : `threshold ${point.rule}`);

export function showAnswer(said, model, file) {
  place("answer").hidden = false;
  place("answer").classList.toggle("doubtful", said.flagged === true);
  place("flag").hidden = said.flagged !== true;
  place("flag-words").textContent = said.warning ?? "";
  showFilm(said, model, file);
  showProbability(said, model);
  list("facts", [
    [
      "how far from known films",
      said.distance_percentile === null
        ? "not known for this model: it cannot say whether the film is one it may judge"
        : `farther than ${said.distance_percentile.toFixed(1)} % of the films kept apart for validation lie from those the model learned from${said.flagged ? "" : ", within the limit"}`,
    ],
    ["projection", said.projection ?? ""],
    ["film, SHA-256", element("code", {}, said.sha256)],
  ]);
  showCases(said.neighbours);
}

let shown = null;

function showFilm(said, model, file) {
  const { explanation } = said;
  if (shown !== null) URL.revokeObjectURL(shown);
  shown = explanation === null ? URL.createObjectURL(file) : null;
  const film = place("film-picture");
  // Without the server's drawing the browser is shown the file itself, which it cannot read where that is DICOM.
  film.hidden = false;
  film.onerror = () => {
    film.hidden = true;
    place("overlay-words").textContent = "This browser cannot show the film itself.";
  };
  film.src = explanation === null ? shown : explanation.film;
  place("overlay").hidden = explanation === null;
  place("overlay-tools").hidden = explanation === null;
  place("overlay-words").textContent = "";
  if (explanation === null) return;
  const overlay = place("overlay");
  overlay.src = explanation.overlay;
  overlay.style.opacity = place("opacity").value / 100;
  place("overlay-words").textContent =
    `Orange speaks for ${model.positive}, blue against; the strongest colour is ${explanation.strongest.toFixed(1)} in log-odds, ` +
    `the whole film, as it is and before probabilities are scaled, ${signed(explanation.evidence)}. It shows what the head goes by, ` +
    "right or wrong, in coarse cells: not where a disease is.";
}

function showProbability(said, model) {
  const point = model.operating_point;
  const digits = point === null ? 1 : digitsApart(said.probability, point.threshold);
  place("probability").replaceChildren(percent(said.probability, digits), " ", element("small", {}, `probability of ${model.positive}`));
  place("mark-probability").style.width = `${100 * said.probability}%`;
  place("mark-threshold").hidden = point === null;
  if (point !== null) place("mark-threshold").style.left = `calc(${100 * Math.min(point.threshold, 1)}% - 1px)`;
  place("meaning").textContent =
    said.flagged === true
      ? ""
      : `Scaled by one number that was fitted on films kept apart (validation), which brings probabilities near to shares there ` +
        `on the whole. Where ${model.positive} is rarer, or films differ, the share is another.`;
  place("decision").textContent = `Decision: ${said.decision}`;
  place("threshold").textContent =
    point === null
      ? `The class of the highest probability: ${model.classes.map((name) => `${name} ${percent(said.probabilities[name])}`).join(", ")}.`
      : `${model.positive} is decided from ${percent(point.threshold, digits)} on: ${nameOf(point)}.`;
}

function showCases(neighbours) {
  place("known").hidden = !neighbours?.length;
  place("cases").replaceChildren(
    ...(neighbours ?? []).map((one) =>
      element(
        "li",
        {},
        ...(one.thumbnail ? [element("img", { src: one.thumbnail, alt: `Known case, labelled ${one.label}` })] : []),
        element("div", { class: "label" }, one.label),
        element("div", {}, `distance ${one.distance.toFixed(3)}`),
        element("div", { class: "id" }, one.image_id),
      ),
    ),
  );
}
