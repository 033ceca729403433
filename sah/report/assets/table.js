"use strict";
// The table of points: sorted by its heads, filtered by words and verdict.

(() => {
  const { h } = sah;
  const ORDER = ["worse", "not enough data", "no verdict", "tied", "better", "dense"];

  sah.pointTable = (section) => {
    const columns = [
      { key: "name", head: "setting", about: "opens the point and its answers", value: (point) => point.name },
      {
        key: "verdict", head: "verdict", about: "against dense on the same questions",
        value: (point) => ORDER.indexOf(point.verdict),
      },
      ...section.columns.map((column) => ({ ...column, value: (point) => first(point.cells[column.key]) })),
    ];
    const rows = section.points.map((point) => ({ point, row: line(point, section.columns) }));
    const body = h("tbody", null, rows.map(({ row }) => row));
    const heads = columns.map((column) => {
      const arrow = h("span", { class: "arrow", "aria-hidden": "true" });
      const button = h("button", { type: "button", title: column.about }, column.head, arrow);
      const about = { scope: "col", "aria-sort": "none", class: isText(column) ? "text" : null };
      const head = h("th", { ...about, "data-key": column.key }, button);
      button.addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        rows.sort((a, b) => compare(column.value(a.point), column.value(b.point), rising ? 1 : -1));
        body.append(...rows.map(({ row }) => row));
      });
      return head;
    });
    const table = h("table", { class: "points" }, h("caption", { class: "offscreen" }, `Points of ${section.title}`),
      h("thead", null, h("tr", null, heads)), body);
    const title = `Table of points, ${section.title}`;
    const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table);
    const box = h("div", null, section.points.length > 8 ? filter(section, rows) : null, scroll);
    if (section.empty.length) {
      box.append(h("p", { class: "muted" }, `Not measured in any of these points: ${section.empty.join(", ")}.`));
    }
    const files = sah.fileLinks(section.tableFiles);
    if (files.length) box.append(h("p", { class: "files" }, h("span", { class: "muted" }, "Files: "), files));
    return box;
  };

  const first = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const isText = (column) => ["name", "verdict", "sparse_in", "prefill"].includes(column.key);

  // What was not measured comes last, whatever the direction.
  const compare = (a, b, sign) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  };

  const line = (point, columns) => {
    const link = h("a", { href: `#/p/${point.place}` }, point.name);
    const row = h("tr", { "data-place": point.place },
      h("th", { scope: "row", class: "text" }, link), h("td", { class: "text" }, sah.chip(point.verdict)));
    for (const column of columns) {
      const cell = point.cells[column.key];
      const value = first(cell);
      const td = h("td", { class: isText(column) ? "text" : null });
      if (value === undefined) td.append(h("span", { class: "muted", title: "not measured" }, "–"));
      else td.append(typeof value === "string" ? value : sah.fixed(value, column.digits, column.signed));
      if (Array.isArray(cell)) {
        const ends = cell.slice(1).map((end) => sah.fixed(end, column.digits, column.signed));
        td.append(h("span", { class: "interval" }, ` [${ends.join(", ")}]`));
      }
      row.append(td);
    }
    row.addEventListener("click", (event) => {
      if (event.target.closest("a") || String(window.getSelection())) return;
      location.hash = `#/p/${point.place}`;
    });
    return row;
  };

  const filter = (section, rows) => {
    const words = h("input", { type: "search", placeholder: "Filter settings", "aria-label": "Filter settings" });
    const known = [...new Set(section.points.map((point) => point.verdict))];
    const verdict = h("select", { "aria-label": "Filter by verdict" }, h("option", { value: "" }, "all verdicts"),
      known.map((name) => h("option", { value: name }, name)));
    const count = h("span", { class: "muted", role: "status" });
    const apply = () => {
      const asked = words.value.toLowerCase().split(/\s+/);
      let shown = 0;
      for (const { point, row } of rows) {
        const named = asked.every((word) => point.name.toLowerCase().includes(word));
        const fits = named && (!verdict.value || verdict.value === point.verdict);
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${rows.length}`;
    };
    words.addEventListener("input", apply);
    verdict.addEventListener("change", apply);
    apply();
    return h("div", { class: "controls" }, words, verdict, count);
  };
})();
