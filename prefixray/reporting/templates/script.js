for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = head.textContent; button.title = "sort"; head.replaceChildren(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex, down = head.ariaSort !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = row => row.cells[at].textContent.trim(), number = text => parseFloat(text.replace("\u2212", "-"));
    const order = (a, b) => { const x = number(a), y = number(b);
      return isNaN(x) || isNaN(y) ? (isNaN(x) - isNaN(y)) || a.localeCompare(b) : x - y; };
    const rows = [...body.rows].sort((a, b) => order(key(a), key(b)) * (down ? 1 : -1));
    body.append(...rows);
  });
}

const stored = document.getElementById("all-outputs");
if (stored) {
  const all = JSON.parse(stored.textContent), box = document.getElementById("browser"), page = 20;
  const make = (tag, text = "", style = "") => {
    const made = document.createElement(tag); made.textContent = text; if (style) made.className = style; return made; };
  const choice = (name, options, chosen) => {
    const label = make("label", name + " "), select = make("select");
    for (const [value, text] of options) select.append(new Option(text, value, false, value === chosen));
    label.append(select); controls.append(label); select.addEventListener("change", () => show(page)); return select; };
  const controls = make("div", "", "controls"), count = make("p", "", "count"), list = make("div");
  const more = make("button", "Show more"); more.type = "button";
  const arms = all.arms.map((name, i) => [String(i), name]), at = name => String(Math.max(all.arms.indexOf(name), 0));
  const rival = all.arms.findLast(name => ![all.reference, "untuned", "in_context"].includes(name)) || all.arms[0];
  const filter = make("input"); filter.type = "search"; filter.placeholder = "words in source or output";
  const label = make("label", "Filter "); label.append(filter); controls.append(label);
  const first = choice("Difference of", arms, at(rival)), second = choice("to", arms, at(all.reference));
  const order = choice("Order", [["down", "ahead first"], ["up", "behind first"], ["file", "as in the data"]], "up");
  const score = (row, arm) => row[2][arm][1] === "" ? NaN : Number(row[2][arm][1]);
  const difference = row => all.sign * (score(row, first.value) - score(row, second.value));
  const article = row => {
    const made = make("article"), listed = make("dl"), apart = all.sign * difference(row);
    if (!isNaN(apart)) made.append(make("h3", (apart < 0 ? "\u2212" : "+") + Math.abs(apart).toFixed(all.digits) + " " + all.metric));
    made.append(make("p", row[0], "source"));
    const [reference, ...others] = row[1], shown = make("dd", reference, "text");
    if (others.length) {
      const folded = make("details"); folded.append(make("summary", `${others.length} more`));
      for (const text of others) folded.append(make("div", text));
      shown.append(folded); }
    listed.append(make("dt", "reference"), make("dd", "", "score"), shown);
    row[2].forEach(([text, number], i) => listed.append(
      make("dt", all.arms[i]), make("dd", number, "score"), make("dd", text.trim() || "(nothing)", "text")));
    made.append(listed); return made; };
  const show = most => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = row => { const text = [row[0], ...row[1], ...row[2].map(one => one[0])].join(" ").toLowerCase();
      return words.every(word => text.includes(word)); };
    const rows = all.rows.filter(has), way = order.value === "down" ? -1 : 1;
    const key = row => { const value = difference(row); return isNaN(value) ? Infinity : way * value; };
    if (order.value !== "file") rows.sort((a, b) => key(a) - key(b));
    count.textContent = `${Math.min(most, rows.length)} of ${rows.length} sources shown, of ${all.rows.length} in all; ` +
      `numbers are ${all.metric} on the source alone, of each arm's first seed`;
    list.replaceChildren(...rows.slice(0, most).map(article));
    more.hidden = rows.length <= most; more.onclick = () => show(most + page); };
  filter.addEventListener("input", () => show(page));
  box.append(controls, count, list, more); box.hidden = false; show(page);
  for (const chosen of document.querySelectorAll(".chosen")) chosen.hidden = true;
}
