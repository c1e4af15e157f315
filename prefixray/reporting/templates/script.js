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
