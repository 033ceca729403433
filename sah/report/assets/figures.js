"use strict";
// Figures with their title, caption, legend, axes' labels and files.

(() => {
  const { h } = sah;
  const FIRST_GRIDS = 6, FIRST_BARS = 24, FIRST_NAMES = 10;

  const link = ([kind, path]) => h("a", { href: path, download: true }, kind.toUpperCase());
  sah.fileLinks = (files) => Object.entries(files).map(link);

  sah.figure = (plot) => {
    const body = { lines, bars, grids }[plot.kind](plot);
    const files = sah.fileLinks(plot.files);
    const wide = plot.kind === "grids" && plot.grids.length > 1 ? " wide" : "";
    return h("figure", { class: `figure ${plot.kind}${wide}`, id: plot.anchor },
      h("figcaption", null, h("h4", null, plot.title), h("p", { class: "muted" }, plot.caption)), ...body,
      files.length ? h("p", { class: "files" }, sah.muted("Files: "), files) : null);
  };

  const axis = (name, text) => h("p", { class: `axis-label ${name}` }, text);
  const small = (path) => h("svg", { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true" }, path);

  const lines = (plot) => {
    const count = plot.series.reduce((sum, line) => sum + line.points.length, 0);
    plot.alt = `${plot.title}: ${plot.y_label} over ${plot.x_label}, ${sah.plural(count, "point")} of ` +
      `${sah.plural(plot.series.length, "line")}. The table of points and the CSV file hold the numbers.`;
    const hidden = new Set();
    const drawing = sah.sized((width) => sah.linePlot(plot, hidden, width), { class: "drawing" });
    const entries = plot.series.map((line, index) => {
      const about = { type: "button", class: "entry", "aria-pressed": "true" };
      const button = h("button", about, sah.swatch(plot.styles[index], plot.joined), h("span", null, line.label));
      button.addEventListener("click", () => {
        hidden.has(index) ? hidden.delete(index) : hidden.add(index);
        button.setAttribute("aria-pressed", String(!hidden.has(index)));
        drawing.again();
      });
      const dim = (on) => drawing.querySelectorAll(".series").forEach((group) =>
        group.classList.toggle("dim", on && Number(group.dataset.series) !== index));
      button.addEventListener("pointerenter", () => dim(true));
      button.addEventListener("pointerleave", () => dim(false));
      return button;
    });
    const about = { class: "legend", role: "group", "aria-label": "Lines shown" };
    const legend = h("div", about, entries.slice(0, FIRST_NAMES));
    if (plot.band) {
      const dash = small(h("path", { class: "dense", d: "M1,7H29" }));
      legend.prepend(h("span", { class: "entry" }, dash, h("span", null, plot.band_label)));
    }
    if (plot.front.length) {
      const step = small(h("path", { class: "front", d: "M2,12H15V3H28" }));
      legend.prepend(h("span", { class: "entry" }, step, h("span", null, "Pareto front")));
    }
    more(legend, entries.slice(FIRST_NAMES), "names");
    const below = `${plot.x_label}${plot.x_log ? ", log scale" : ""} →`;
    return [axis("y", `↑ ${plot.y_label}`), drawing, axis("x", below), legend];
  };

  const more = (box, rest, what) => {
    if (!rest.length) return;
    const button = h("button", { type: "button", class: "small" }, `Show ${rest.length} more ${what}`);
    button.addEventListener("click", () => button.replaceWith(...rest));
    box.append(button);
  };

  const bars = (plot) => {
    const totals = plot.bars.map((bar) => Object.values(bar.parts).reduce((sum, part) => sum + part, 0));
    const largest = Math.max(...totals) || 1;
    const rows = plot.bars.map((bar, place) => {
      const measured = plot.parts.filter((part) => part in bar.parts);
      const told = measured.map((part) => `${part} ${sah.fixed(bar.parts[part], 1)} ms`);
      const track = h("span", { class: "track", "aria-hidden": "true" });
      plot.parts.forEach((part, index) => {
        if (!(part in bar.parts)) return;
        const piece = h("span", { class: `piece b${index % 6}` });
        piece.style.width = `${(100 * bar.parts[part]) / largest}%`;
        track.append(piece);
      });
      const opens = bar.place !== null && bar.place !== undefined;
      const name = opens ? sah.open(bar.place, bar.name) : h("span", null, bar.name);
      const row = h("li", null, h("span", { class: "bar-name" }, name), track,
        h("span", { class: "total" }, `${sah.fixed(totals[place], 1)} ms`),
        h("span", { class: "offscreen" }, told.join(", ")));
      row.addEventListener("pointermove", (event) => sah.tip([bar.name, ...told], event));
      row.addEventListener("pointerleave", () => sah.tip(null));
      return row;
    });
    const list = h("ul", { class: "bar-list" }, rows.slice(0, FIRST_BARS));
    const box = h("div", null, list);
    const rest = rows.slice(FIRST_BARS);
    if (rest.length) {
      const button = h("button", { type: "button", class: "small" }, `Show ${rest.length} more bars`);
      button.addEventListener("click", () => (list.append(...rest), button.remove()));
      box.append(button);
    }
    const legend = h("div", { class: "legend" }, plot.parts.map((part, index) =>
      h("span", { class: "entry" }, h("span", { class: `key b${index % 6}`, "aria-hidden": "true" }),
        h("span", null, part))));
    return [axis("x", `${plot.x_label} →`), box, legend];
  };

  const grids = (plot) => {
    const panel = (grid) => h("div", { class: "panel" }, h("p", { class: "panel-title" }, grid.title),
      sah.sized((width) => sah.gridDrawing(plot, grid, width), { class: "drawing" }));
    const first = plot.grids[0];
    const alone = plot.grids.length === 1 || (first.x.length > 16 && plot.grids.length < 3);
    const box = h("div", { class: alone ? "panels wide" : "panels" }, plot.grids.slice(0, FIRST_GRIDS).map(panel));
    const parts = [axis("y", `↓ ${first.y_name}`), box, axis("x", `${first.x_name} →`), sah.colourScale(plot)];
    if (plot.grids.length > FIRST_GRIDS) {
      const picker = h("select", { "aria-label": "Setting to add" },
        h("option", { value: "" }, `add one of ${plot.grids.length - FIRST_GRIDS} more …`),
        plot.grids.slice(FIRST_GRIDS).map((grid, place) => h("option", { value: place + FIRST_GRIDS }, grid.title)));
      picker.addEventListener("change", () => {
        if (picker.value === "") return;
        box.append(panel(plot.grids[Number(picker.value)]));
        picker.selectedOptions[0].remove();
        picker.value = "";
      });
      parts.push(picker);
    }
    return parts;
  };
})();
