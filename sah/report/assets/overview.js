"use strict";
// The first view: what went wrong, then for each group its verdicts, table and figures, then where all comes from.

(() => {
  const { h } = sah;
  const FIRST_LINES = 10, OPEN_SECTIONS = 3;

  sah.overview = (data) => {
    const sparse = data.sections.flatMap((section) => section.points).filter((point) => !point.dense).length;
    const few = data.sections.length <= OPEN_SECTIONS + 1;
    const written = data.written.replace("T", " ").replace("+00:00", " UTC");
    const made = [
      h("h1", null, `${sah.plural(sparse, "sparse setting")} against dense attention`),
      h("p", { class: "muted path" }, data.folder),
      problems(data), notes(data),
      ...data.sections.map((section, place) => sectionBox(section, few || place < OPEN_SECTIONS)),
      provenance(data),
      h("footer", { class: "muted" }, `Written ${written} by sah ${data.version}.`),
    ];
    return made.filter(Boolean);
  };

  const problems = (data) => {
    if (!data.problems.length && !data.failures.length) return null;
    const box = h("section", { class: "alert", "aria-label": "Problems" });
    if (data.failures.length) {
      box.append(h("h2", null, `${sah.plural(data.failures.length, "job")} failed`),
        h("ul", null, data.failures.map(([overrides, error]) =>
          h("li", null, h("code", null, overrides), h("br"), error))));
    }
    if (data.problems.length) {
      const lines = data.problems.map((problem) => h("li", null, problem));
      const count = lines.length === 1 ? "Something" : `${lines.length} things`;
      box.append(h("h2", null, `${count} could not be read`), h("ul", null, lines.slice(0, 5)));
      const rest = lines.slice(5);
      if (rest.length) box.append(h("details", null, h("summary", null, `${rest.length} more`), h("ul", null, rest)));
    }
    return box;
  };

  const notes = ({ notes: told }) =>
    (told.length ? h("ul", { class: "notes muted" }, told.map((note) => h("li", null, note))) : null);

  // Figures are made when a section is first opened: a mixed folder may have a hundred of them.
  const sectionBox = (section, open) => {
    const title = section.title.split(", ");
    const count = section.needles ? [] : [sah.plural(section.points.length, "point")];
    const box = h("details", { class: "section", id: section.slug, open },
      h("summary", null, h("h2", null, title.slice(0, 2).join(", ")),
        sah.muted([...count, ...title.slice(2)].join(" · "))));
    let filled = false;
    const fill = () => {
      if (filled || !box.open) return;
      filled = true;
      box.append(...(section.needles ? [figures(section)] : groupParts(section)).filter(Boolean));
    };
    box.addEventListener("toggle", fill);
    fill();
    return box;
  };

  const groupParts = (section) => [
    verdicts(section),
    h("h3", null, "Points"), sah.pointTable(section),
    section.plots.length ? h("h3", null, "Figures") : null, figures(section),
    heads(section),
  ];

  const verdicts = (section) => {
    const told = section.points.filter((point) => !point.dense);
    const dense = section.points.find((point) => point.dense);
    const headline = h("p", { class: "headline" }, section.headline);
    const box = h("div", { class: "verdicts" }, h("h3", null, "Verdicts"), headline);
    const line = (point) => h("li", null, sah.chip(point.verdict), " ", sah.open(point.place, point.text));
    const lines = told.map(line);
    const list = h("ul", { class: "lines" }, lines.slice(0, FIRST_LINES));
    if (dense && !told.length) list.append(h("li", null, dense.text));
    box.append(list);
    if (lines.length > FIRST_LINES) {
      const button = h("button", { type: "button", class: "small" }, `Show all ${lines.length}`);
      button.addEventListener("click", () => (list.append(...lines.slice(FIRST_LINES)), button.remove()));
      box.append(button);
    }
    return box;
  };

  const figures = (section) => h("div", { class: "figures" },
    section.plots.map((plot) => sah.figure({ ...plot, anchor: `${section.slug}-${plot.slug}` })));

  // Heatmaps of heads lie with the points: one point's are fetched at a time.
  const heads = (section) => {
    if (!section.heads.length) return null;
    const known = section.points.filter((point) => section.headPoints.includes(point.name));
    const picker = h("select", { "aria-label": "Point whose layers and heads are shown" },
      known.map((point) => h("option", { value: point.place }, point.name)));
    const room = h("div", { class: "figures" });
    const show = () => sah.load(`p${picker.value}`).then((data) => {
      const files = Object.fromEntries(section.heads.map((plot) => [plot.slug, plot.files]));
      const plots = data.plots.filter((plot) => plot.slug in files);
      room.replaceChildren(...plots.map((plot) => sah.figure({ ...plot, files: files[plot.slug] })));
    }, (error) => room.replaceChildren(h("p", { class: "alert" }, error.message)));
    picker.addEventListener("change", show);
    show();
    return h("div", null, h("h3", null, "Layers and heads"), h("div", { class: "controls" }, picker), room);
  };

  const provenance = (data) => h("section", { id: "provenance" }, h("h2", null, "Provenance"),
    h("p", { class: "muted" }, "Of the runs that made the rows; where points differ, each value has its number of " +
      "points. A point's own page has its command."),
    h("dl", { class: "facts" }, data.provenance.flatMap(({ name, values }) => [
      h("dt", null, name),
      h("dd", { class: values.length > 1 ? "mixed" : null }, values.map(([value, count]) =>
        h("div", null, value, values.length > 1 ? sah.muted(` (${sah.plural(count, "point")})`) : null))),
    ])));
})();
