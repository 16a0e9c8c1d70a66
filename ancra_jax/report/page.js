"use strict";
(() => {
  // Light or dark: the system's scheme until the button is pressed, then what was chosen.
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                 set: (value) => { try { localStorage.setItem("theme", value); } catch { /* not allowed */ } } };
  let chosen = kept.get();
  const isDark = () => (chosen ? chosen === "dark" : system.matches);
  const show = () => {
    root.style.colorScheme = chosen || "";
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show in ${isDark() ? "light" : "dark"} colours`);
  };
  button.hidden = false;
  button.addEventListener("click", () => { chosen = isDark() ? "light" : "dark"; kept.set(chosen); show(); });
  system.addEventListener("change", show);
  show();

  // Tables sort by a click on a header, or by the keyboard: the headers hold buttons.
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/[†,]/g, ""));
    return { text, number };
  };
  const compare = (one, other) => {
    const missing = (cell) => cell.text === "—" || cell.text === "";
    if (missing(one) || missing(other)) return missing(one) - missing(other);
    if (Number.isNaN(one.number) || Number.isNaN(other.number)) return one.text.localeCompare(other.text);
    return one.number - other.number;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.textContent) return;
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      head.append(press);
      press.addEventListener("click", () => {
        const first = head.classList.contains("n") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const missing = (row) => ["—", ""].includes(row.cells[column].textContent.trim());
        const rows = [...body.rows].sort((a, b) => {
          const found = compare(value(a, column), value(b, column));
          return order === "ascending" || missing(a) || missing(b) ? found : -found;
        });
        body.append(...rows);
      });
    });
  }
})();
