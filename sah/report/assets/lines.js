"use strict";
// Curves and dots over a number, as SVG.

(() => {
  const { h } = sah;

  const nice = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
    const ticks = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) {
      ticks.push(Math.abs(tick) < step * 1e-6 ? 0 : tick);
    }
    return ticks;
  };

  const logTicks = (low, high) => {
    const decades = Math.log10(high / low);
    const factors = decades > 3.5 ? [1] : decades > 1.8 ? [1, 3] : [1, 2, 5];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const factor of factors) {
        const tick = factor * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(+tick.toPrecision(6));
      }
    }
    return ticks;
  };

  // Range of the values with some room around them.
  const range = (values, log) => {
    let low = Math.min(...values), high = Math.max(...values);
    if (log) {
      // Values that nearly coincide must not be spread over the whole width, and two ticks want a factor of 2.5.
      const room = Math.max((high / low) ** 0.06, 1.8 / Math.sqrt(high / low));
      return [low / room, high * room];
    }
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.1;
    return [low - room, high + room];
  };

  const scale = ([low, high], [from, to], log) => {
    const of = log ? Math.log : (value) => value;
    return (value) => from + ((of(value) - of(low)) / (of(high) - of(low))) * (to - from);
  };

  const thinned = (ticks, at, room) => {
    let last = -Infinity;
    return ticks.filter((tick) => {
      if (Math.abs(at(tick) - last) < room(tick)) return false;
      last = at(tick);
      return true;
    });
  };

  sah.linePlot = (plot, hidden, width) => {
    const series = plot.series.map((line, index) => ({ ...line, index, style: sah.style(plot.styles[index]) }));
    const shown = series.filter((line) => !hidden.has(line.index));
    const all = (shown.length ? shown : series).flatMap((line) => line.points);
    const xs = [...all.map((point) => point.x)];
    const ys = all.flatMap((point) => [point.y, point.low, point.high]).filter((value) => value !== null);
    if (plot.band) ys.push(...[plot.band.value, plot.band.low, plot.band.high].filter((value) => value !== null));
    const kept = plot.y_log ? ys.filter((value) => value > 0) : ys;
    let yRange = range(kept, plot.y_log);
    if (plot.y_range) {
      const room = (plot.y_range[1] - plot.y_range[0]) * 0.04;
      yRange = [Math.min(plot.y_range[0] - room, yRange[0]), Math.max(plot.y_range[1] + room, yRange[1])];
      yRange = [plot.y_range[0] - room, plot.y_range[1] + room];
    }
    const xRange = range(xs, plot.x_log);
    const height = width < 480 ? 250 : 300;
    let yTicks = plot.y_log ? logTicks(...yRange) : nice(...yRange, 5);
    if (yTicks.length < 2) yTicks = nice(...yRange, 4).filter((tick) => !plot.y_log || tick > 0);
    const left = 14 + 7 * Math.max(...yTicks.map((tick) => sah.short(tick).length));
    const x = scale(xRange, [left + 8, width - 16], plot.x_log);
    const y = scale(yRange, [height - 30, 12], plot.y_log);
    const xTicks = thinned(plot.x_log ? logTicks(...xRange) : nice(...xRange, width / 90), x,
      (tick) => 14 + 7 * sah.short(tick).length);
    yTicks = thinned(yTicks, y, () => 18);

    const svg = h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": plot.alt });
    for (const tick of yTicks) {
      svg.append(h("line", { class: "grid", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }));
      svg.append(h("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, sah.short(tick)));
    }
    for (const tick of xTicks) {
      svg.append(h("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 8, y2: height - 26 }));
      svg.append(h("text", { x: x(tick), y: height - 10, "text-anchor": "middle" }, sah.short(tick)));
    }
    svg.append(h("line", { class: "axis", x1: left, x2: width - 8, y1: height - 26, y2: height - 26 }));
    const clamp = (value) => Math.max(8, Math.min(height - 26, y(value)));
    if (plot.band) {
      const { value, low, high } = plot.band;
      if (low !== null && high !== null && low < high) {
        const box = { x: left, width: width - 8 - left, y: clamp(high), height: Math.max(1, clamp(low) - clamp(high)) };
        svg.append(h("rect", { class: "band", ...box }));
      }
      svg.append(h("line", { class: "dense", x1: left, x2: width - 8, y1: y(value), y2: y(value) }));
    }
    if (plot.front.length) {
      let path = "";
      plot.front.forEach(([px, py], place) => {
        path += place ? `H${x(px)}V${y(py)}` : `M${x(px)},${y(py)}`;
      });
      svg.append(h("path", { class: "front", d: path }));
    }
    for (const line of shown) svg.append(drawLine(plot, line, x, y, clamp));
    return svg;
  };

  const drawLine = (plot, line, x, y, clamp) => {
    const { colour, marker, dash } = line.style;
    const group = h("g", { class: "series", "data-series": line.index, stroke: colour, fill: colour });
    const path = line.points.map((point, place) => `${place ? "L" : "M"}${x(point.x)},${y(point.y)}`).join("");
    if (plot.joined && line.points.length > 1) {
      group.append(h("path", { class: "line", d: path, "stroke-dasharray": dash }));
    }
    for (const point of line.points) {
      const [px, py] = [x(point.x), y(point.y)];
      if (point.low !== null && point.high !== null && point.low < point.high) {
        const [low, high] = [clamp(point.low > 0 || !plot.y_log ? point.low : point.y), clamp(point.high)];
        const path = `M${px},${low}V${high}M${px - 4},${low}h8M${px - 4},${high}h8`;
        group.append(h("path", { class: "whisker", d: path }));
      }
      const interval = point.low === null || point.high === null
        ? "interval not computed"
        : `95 % interval ${sah.short(point.low)} to ${sah.short(point.high)}`;
      const lines = [point.name, `${plot.y_label}: ${sah.fixed(point.y, 4)}`, interval,
        `${plot.x_label}: ${point.x >= 1e4 ? sah.fixed(point.x, 0) : sah.fixed(point.x, 4)}`];
      const dot = h("path", { class: "dot", d: sah.marker(marker, px, py, 4.5) });
      dot.addEventListener("pointermove", (event) => sah.tip(lines, event));
      dot.addEventListener("pointerleave", () => sah.tip(null));
      if (point.place !== null && point.place !== undefined && point.place >= 0) {
        dot.classList.add("opens");
        dot.addEventListener("click", () => (location.hash = `#/p/${point.place}`));
      }
      group.append(dot);
    }
    return group;
  };

  // A line of the legend: its own small drawing of line and marker.
  sah.swatch = (index, joined) => {
    const { colour, marker, dash } = sah.style(index);
    const box = { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true" };
    const svg = h("svg", { ...box, stroke: colour, fill: colour });
    if (joined) svg.append(h("path", { class: "line", d: "M1,7H29", "stroke-dasharray": dash }));
    svg.append(h("path", { class: "dot", d: sah.marker(marker, 15, 7, 4.5) }));
    return svg;
  };
})();
