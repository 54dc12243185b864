// The comparison table: sorted by any column, in the report's order until a reader asks for another.

const LONG_TABLE = 40;

function startTable(data) {
  const table = document.getElementById("comparison");
  const body = table.tBodies[0];
  const lines = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const remark = element("span", { role: "status" });
  const values = (number) => {
    const row = data.rows[number];
    const drop = row.drop ? row.drop.test - row.drop.val : null;
    return [row.name, row.cells[0], drop, ...row.cells.slice(1), row.seeds];
  };
  const held = new Map(lines.map((tr) => [tr, values(Number(tr.dataset.row))]));

  const inOrder = () => {
    body.append(...lines);
    headings.forEach((th) => th.removeAttribute("aria-sort"));
    remark.textContent = "";
    reset.hidden = true;
  };
  const reset = element("button", { type: "button", hidden: true }, "The report's order");
  reset.addEventListener("click", inOrder);

  const sort = (column) => {
    const th = headings[column];
    const first = column ? "descending" : "ascending";
    const now = th.getAttribute("aria-sort");
    const direction = now === null ? first : now === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const sorted = [...lines].sort((a, b) => {
      const [one, other] = [held.get(a)[column], held.get(b)[column]];
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * (typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : one - other);
    });
    body.append(...sorted);
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", direction);
    reset.hidden = false;
    const ofTest = th.dataset.split === "test" || th.classList.contains("drop");
    remark.textContent = ofTest ? "Sorted by a figure of test: to be read, not to be chosen by." : "";
  };
  headings.forEach((th, column) => {
    const button = element("button", { type: "button" });
    const ends = th.querySelector(".ends");
    button.append(...[...th.childNodes].filter((node) => node !== ends));
    // A browser repeats no button at the head of a page of paper.
    th.prepend(button, element("span", { class: "on-paper", "aria-hidden": "true" }, button.textContent));
    button.addEventListener("click", () => sort(column));
  });

  const tools = document.getElementById("table-tools");
  const search = element("input", { type: "search", size: 22, autocomplete: "off" });
  const count = document.getElementById("table-count");
  // A long table begins with the rows that are evaluated below, which val ranks first.
  const foremost = new Set(data.evaluations.map((one) => one.row));
  let brief = lines.length > LONG_TABLE;
  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const tr of lines) {
      const number = Number(tr.dataset.row);
      const name = data.rows[number].name.toLowerCase();
      const meant = wanted ? wanted.split(/\s+/).every((word) => name.includes(word)) : !brief || foremost.has(number);
      tr.hidden = !meant;
      shown += meant;
    }
    const which = brief && !wanted ? ": selected, ensembles over backbones, each backbone's best and the next, all by val" : "";
    count.textContent = shown < lines.length ? `${shown} of ${lines.length} rows${which}` : "";
    // What is searched for is looked for in all rows already.
    more.hidden = wanted !== "";
    more.textContent = brief ? `Show all ${lines.length} rows` : `Show ${foremost.size} rows`;
  };
  const more = element("button", { type: "button", id: "table-all" });
  more.addEventListener("click", () => {
    brief = !brief;
    show();
  });
  search.addEventListener("input", show);
  if (lines.length > 8) tools.append(element("label", {}, "Rows whose name holds ", search));
  if (brief) tools.append(more);
  show();
  tools.append(reset, remark);
  tools.hidden = false;
}
