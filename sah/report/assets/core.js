"use strict";
// What all parts of the page share: building elements, writing numbers, loading data, tooltips, the theme.
// Texts of models and data sets are put into the document as text only: nothing here parses HTML.

const sah = { data: {}, waiting: {} };

// Called by the data files, which are scripts since a page opened from a folder may read nothing else.
function sahData(name, content) {
  sah.data[name] = content;
}

sah.load = (name) => {
  if (sah.data[name]) return Promise.resolve(sah.data[name]);
  sah.waiting[name] ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onload = () => (sah.data[name] ? done(sah.data[name]) : script.onerror());
    script.onerror = () => {
      delete sah.waiting[name];
      failed(new Error(`data/${name}.js cannot be read: copy the whole folder of the report, not index.html alone.`));
    };
    document.head.append(script);
  });
  return sah.waiting[name];
};

const SVG_TAGS = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "defs", "linearGradient", "stop"]);
const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

// h("p", { class: "note", onclick: f }, "text", child, ...): an element; null children are left out.
sah.h = (tag, settings, ...children) => {
  const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG_NAMESPACE, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(settings || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
};

sah.muted = (...children) => sah.h("span", { class: "muted" }, ...children);
sah.open = (place, text) => sah.h("a", { href: `#/p/${place}` }, text);
sah.facts = (entries) => entries.flatMap(([name, value]) => [sah.h("dt", null, name), sah.h("dd", null, value)]);

sah.fixed = (value, digits, signed = false) => {
  if (typeof value !== "number") return "–";
  if (digits === null || digits === undefined || (digits === 0 && Math.abs(value) >= 1e4)) {
    return Number.isInteger(value) || Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : `${value}`;
  }
  const tiny = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits;
  const text = tiny ? value.toExponential(1) : value.toFixed(digits);
  return signed && value >= 0 ? `+${text}` : text.replace("-", "−");
};

// A number for an axis: as short as it can be.
sah.short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e4) {
    const [power, unit] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : [1e3, "k"];
    return `${+(value / power).toPrecision(3)}${unit}`;
  }
  if (size > 0 && size < 1e-4) return value.toExponential(0);
  return `${+value.toPrecision(3)}`.replace("-", "−");
};

sah.plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many || `${one}s`}`;

sah.VERDICTS = { better: "▲", worse: "▼", tied: "=", "not enough data": "?", "no verdict": "–", dense: "●" };

sah.chip = (verdict) => {
  const known = verdict in sah.VERDICTS ? verdict : "no verdict";
  const sign = sah.h("span", { "aria-hidden": "true" }, `${sah.VERDICTS[known]} `);
  return sah.h("span", { class: `chip ${known.replaceAll(" ", "-")}` }, sign, verdict);
};

// Okabe and Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/). Markers and
// dashes change as well, so that no line is told by its colour alone. A method has the same style in all figures of its
// section; -1 is the dense baseline.
sah.style = (index) => {
  if (index < 0) return { colour: "var(--c-dense)", marker: 0, dash: "6 4" };
  const again = Math.floor(index / 7);
  return {
    colour: `var(--c${index % 7})`,
    marker: (index + again) % 7,
    dash: ["", "2 4", "9 4", "9 3 2 3", "14 4"][again % 5],
  };
};

sah.marker = (kind, x, y, size) => {
  const s = size, d = size * 0.9, near = size * 0.36;
  const shapes = [
    () => `M${x - s},${y}a${s},${s} 0 1,0 ${2 * s},0a${s},${s} 0 1,0 ${-2 * s},0Z`,
    () => `M${x - d},${y - d}h${2 * d}v${2 * d}h${-2 * d}Z`,
    () => `M${x},${y - s * 1.3}L${x + s * 1.2},${y}L${x},${y + s * 1.3}L${x - s * 1.2},${y}Z`,
    () => `M${x},${y - s * 1.2}L${x + s * 1.15},${y + d}L${x - s * 1.15},${y + d}Z`,
    () => `M${x},${y + s * 1.2}L${x + s * 1.15},${y - d}L${x - s * 1.15},${y - d}Z`,
    () => `M${x - near},${y - s}h${2 * near}v${s - near}h${s - near}v${2 * near}h${near - s}v${s - near}h${-2 * near}` +
      `v${near - s}h${near - s}v${-2 * near}h${s - near}Z`,
    () => `M${x - s},${y - s * 0.5}L${x},${y - s * 1.2}L${x + s},${y - s * 0.5}` +
      `L${x + s * 0.6},${y + s}H${x - s * 0.6}Z`,
  ];
  return shapes[kind]();
};

sah.tip = (lines, event) => {
  const tip = document.getElementById("tip");
  tip.hidden = !lines;
  if (!lines) return;
  tip.replaceChildren(...lines.map((line) => sah.h("div", null, line)));
  const { width, height } = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 8);
  const y = event.clientY + 18 + height > window.innerHeight ? event.clientY - height - 12 : event.clientY + 18;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${Math.max(8, y)}px`;
};

// Draws again when the element's width changes; `draw` gets the width and returns the new content.
sah.sized = (draw, settings) => {
  const box = sah.h("div", settings);
  let known = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width === 0 || width === known) return;
    known = width;
    box.replaceChildren(...[draw(width)].flat());
  }).observe(box);
  box.again = () => known && box.replaceChildren(...[draw(known)].flat());
  return box;
};

sah.copyButton = (text) => {
  const button = sah.h("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Browsers give pages opened from a folder no clipboard: the old way asks for none.
      const area = sah.h("textarea", { readonly: true, class: "offscreen" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
};

sah.setTheme = (theme) => {
  const dark = theme ? theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = document.getElementById("theme");
  if (!button) return;
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`);
};

sah.keep = (name, value) => {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return null; // private windows have no storage
  }
};

sah.setTheme(sah.keep("sah-theme"));
