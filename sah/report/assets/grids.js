"use strict";
// Heatmaps as SVG, on the colours of cividis (doi.org/10.1371/journal.pone.0199239), made for colour-blind readers.

(() => {
  const { h } = sah;
  const STOPS = [
    [0, 34, 78], [35, 62, 108], [87, 92, 109], [124, 123, 120], [165, 156, 116], [211, 193, 100], [254, 232, 56],
  ];

  const colour = (share) => {
    const at = Math.max(0, Math.min(1, share)) * (STOPS.length - 1);
    const [from, to] = [STOPS[Math.floor(at)], STOPS[Math.ceil(at)]];
    return from.map((part, place) => Math.round(part + (to[place] - part) * (at - Math.floor(at))));
  };

  // Of WCAG; above 0.179 black text has more contrast than white.
  const luminance = (parts) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [red, green, blue] = parts.map((part) => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };

  // Of names in cells of that width, each how manieth has room.
  const every = (names, width) => Math.ceil((Math.max(...names.map((name) => name.length)) * 7 + 8) / width);

  sah.gridDrawing = (plot, grid, width) => {
    const left = 12 + 7 * Math.max(...grid.y.map((name) => name.length));
    const cell = (width - left - 6) / grid.x.length;
    const tall = Math.max(9, Math.min(26, 380 / grid.y.length));
    const height = 6 + tall * grid.y.length + 22;
    const alt = `${grid.title}: ${grid.value_name}, ${grid.y_name} down, ${grid.x_name} across.`;
    const svg = h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt });
    const span = plot.high - plot.low || 1;
    grid.cells.forEach((row, down) => {
      row.forEach((value, across) => {
        const place = { x: left + across * cell, y: 6 + down * tall, width: Math.max(0.5, cell - 1), height: tall - 1 };
        const rect = h("rect", { ...place, class: value === null ? "empty" : "cell" });
        const told = value === null ? "not measured" : sah.fixed(value, 4);
        if (value !== null) {
          const [red, green, blue] = colour((value - plot.low) / span);
          rect.setAttribute("fill", `rgb(${red},${green},${blue})`);
          if (cell >= 36 && tall >= 16) {
            const light = luminance([red, green, blue]) > 0.179;
            const text = { x: place.x + place.width / 2, y: place.y + tall / 2 + 4, "text-anchor": "middle" };
            svg.append(rect, h("text", { ...text, class: light ? "on-light" : "on-dark" }, sah.short(value)));
          }
        }
        const count = grid.counts ? [sah.plural(grid.counts[down][across], "question")] : [];
        const at = [`${grid.y_name}: ${grid.y[down]}`, `${grid.x_name}: ${grid.x[across]}`];
        const lines = [`${grid.title}: ${told}`, ...at, ...count];
        rect.addEventListener("pointermove", (event) => sah.tip(lines, event));
        rect.addEventListener("pointerleave", () => sah.tip(null));
        if (!rect.parentNode) svg.append(rect);
      });
    });
    const stepX = every(grid.x, cell);
    grid.x.forEach((name, across) => {
      if (across % stepX) return;
      svg.append(h("text", { x: left + (across + 0.5) * cell, y: height - 8, "text-anchor": "middle" }, name));
    });
    const stepY = Math.ceil(15 / tall);
    grid.y.forEach((name, down) => {
      if (down % stepY) return;
      svg.append(h("text", { x: left - 6, y: 6 + (down + 0.5) * tall + 4, "text-anchor": "end" }, name));
    });
    return svg;
  };

  let gradients = 0;

  sah.colourScale = (plot) => {
    const name = `scale${gradients++}`;
    const gradient = h("linearGradient", { id: name });
    STOPS.forEach((stop, place) => {
      gradient.append(h("stop", { offset: place / (STOPS.length - 1), "stop-color": `rgb(${stop.join(",")})` }));
    });
    const bar = h("svg", { width: 140, height: 12, viewBox: "0 0 140 12", "aria-hidden": "true" },
      h("defs", null, gradient), h("rect", { width: 140, height: 12, fill: `url(#${name})` }));
    const [low, high] = [plot.low, plot.high].map((end) => h("span", null, sah.short(end)));
    return h("div", { class: "scale" }, low, bar, high, sah.muted(plot.grids[0].value_name));
  };
})();
