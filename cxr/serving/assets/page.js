// A film goes to /predict, its answer onto the page. Text goes in as text nodes only, so that no name can become markup.

import { showAnswer, showModel } from "./show.js";

const place = (id) => document.getElementById(id);
const status = place("status");
const problem = place("problem");
let token = "";
let model = null;
let asking = null;

function request(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { ...options, headers, cache: "no-store" });
}

// What a refusal says, in one sentence; never the file's own words.
async function reasonOf(response) {
  const said = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  return typeof said.detail === "string" ? said.detail : `the server answered ${response.status}`;
}

async function meet() {
  model = null;
  const response = await request("/model").catch(() => null);
  if (response === null) {
    place("which").textContent = "The server does not answer.";
    return;
  }
  place("ask-token").hidden = response.status !== 401;
  if (response.status === 401) {
    place("which").textContent = token ? "That is not this server's token." : "This server wants its token first.";
    place("token").focus();
    return;
  }
  if (!response.ok) {
    place("which").textContent = `No model: ${await reasonOf(response)}.`;
    return;
  }
  model = await response.json();
  showModel(model);
}

async function send(file) {
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  problem.textContent = "";
  // An answer must not stand beside a film that it is not of.
  place("answer").hidden = true;
  place("known").hidden = true;
  if (model === null) await meet();
  if (mine !== asking) return;
  if (model === null) {
    say(place("ask-token").hidden ? "The server does not tell its model: try again in a moment." : "This server wants its token first.");
    return;
  }
  if (file.size > model.limits.max_bytes) {
    say(`This file is larger than ${Math.floor(model.limits.max_bytes / 2 ** 20)} MiB, the most that this server takes.`);
    return;
  }
  status.textContent = "Looking at the film …";
  const wanted = new URLSearchParams(model.draws_evidence ? { explain: "true" } : {});
  if (model.knows_cases) wanted.set("neighbours", "6");
  let answer;
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const response = await request(`/predict?${wanted}`, { method: "POST", body: file, headers, signal: mine.signal });
    if (!response.ok) {
      const reason = await reasonOf(response);
      if (mine !== asking) return;
      if (response.status === 401) await meet();
      say(`No answer for this file: ${reason}.`);
      return;
    }
    answer = await response.json();
  } catch (error) {
    if (mine === asking && error.name !== "AbortError") say("The server does not answer.");
    return;
  }
  if (mine !== asking) return;
  // Another server may have taken this one's place: its answer must not stand under the old model's name.
  if (answer.model.sha256 !== model.sha256) await meet();
  if (mine !== asking) return;
  if (model === null || answer.model.sha256 !== model.sha256) {
    say("The server has changed its model: send the film again.");
    return;
  }
  try {
    showAnswer(answer.predictions[0], model, file);
  } catch {
    place("answer").hidden = true;
    say("The server's answer cannot be shown: load this page again.");
    return;
  }
  status.textContent = "The answer is below.";
  place("answer").focus({ preventScroll: true });
  place("answer").scrollIntoView({ block: "start" });
}

function say(sentence) {
  status.textContent = "";
  problem.textContent = sentence;
}

place("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) send(file);
  // So that the same file can be chosen again.
  event.target.value = "";
});

const zone = place("zone");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) zone.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  // Anywhere on the page: else the browser would open the file in its place.
  event.preventDefault();
  zone.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) send(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) {
    event.preventDefault();
    send(file);
  }
});
place("ask-token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = place("token").value.trim();
  meet();
});
place("opacity").addEventListener("input", (event) => {
  place("overlay").style.opacity = event.target.value / 100;
  place("opacity-value").textContent = `${event.target.value} %`;
});

meet();
