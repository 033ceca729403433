"use strict";
// One point: its verdict and figures, the command that computes it again, and its answers.

(() => {
  const { h } = sah;

  sah.pointPage = (section, point, data, siblings) => {
    const place = siblings.indexOf(point);
    const near = (other, name) => (other ? h("a", { href: `#/p/${other.place}`, title: other.name }, name) : h("span", { class: "muted" }, name));
    return [
      h("nav", { class: "crumbs", "aria-label": "Points" }, h("a", { href: `#${section.slug}` }, "← All points"),
        h("span", { class: "near" }, near(siblings[place - 1], "previous"), " · ", near(siblings[place + 1], "next"))),
      h("h1", null, point.name, " ", sah.chip(point.verdict)),
      h("p", { class: "muted" }, section.title),
      h("p", { class: "headline" }, data.verdict),
      facts(section, point),
      h("h2", { id: "answers" }, data.isDense ? "Answers" : "Answers, dense and sparse"),
      data.isDense ? null : h("p", { class: "muted" }, "Words that the other answer lacks are marked: ", h("del", null, "dense only"), ", ", h("ins", null, "sparse only"), "."),
      ...sah.examples(data),
      data.plots.length ? h("h2", null, "Figures of this point") : null,
      h("div", { class: "figures" }, data.plots.map((plot) => sah.figure(plot))),
      h("h2", null, "Compute it again"),
      h("div", { class: "command" }, h("code", null, data.command), sah.copyButton(data.command)),
      h("h2", null, "Provenance"),
      h("dl", { class: "facts" }, [["point", data.id], ["folder", data.folder], ["dense folder", data.dense_folder ?? (data.isDense ? "this is the dense point" : "missing")],
        ["recipe", data.recipe ? JSON.stringify(data.recipe) : "not noted"], ...data.provenance].flatMap(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    ].filter(Boolean);
  };

  const facts = (section, point) => h("dl", { class: "tiles" }, section.columns.filter((column) => point.cells[column.key] !== undefined).map((column) => {
    const cell = point.cells[column.key];
    const value = Array.isArray(cell) ? cell[0] : cell;
    const interval = Array.isArray(cell) ? h("span", { class: "interval" }, `${sah.fixed(cell[1], column.digits, column.signed)} to ${sah.fixed(cell[2], column.digits, column.signed)}`) : null;
    return h("div", { title: column.about }, h("dt", null, column.head), h("dd", null, typeof value === "string" ? value : sah.fixed(value, column.digits, column.signed), interval));
  }));
})();
