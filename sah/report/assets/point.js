"use strict";
// One point: its verdict and figures, the command that computes it again, and its answers.

(() => {
  const { h } = sah;

  sah.pointPage = (section, point, data, siblings) => {
    const place = siblings.indexOf(point);
    const near = (other, name) =>
      (other ? h("a", { href: `#/p/${other.place}`, title: other.name }, name) : sah.muted(name));
    const dense = data.dense_folder ?? (data.isDense ? "this is the dense point" : "missing");
    const recipe = data.recipe ? JSON.stringify(data.recipe) : "not noted";
    const own = [["point", data.id], ["folder", data.folder], ["dense folder", dense], ["recipe", recipe]];
    return [
      h("nav", { class: "crumbs", "aria-label": "Points" }, h("a", { href: `#${section.slug}` }, "← All points"),
        h("span", { class: "near" }, near(siblings[place - 1], "previous"), " · ", near(siblings[place + 1], "next"))),
      h("h1", null, point.name, " ", sah.chip(point.verdict)),
      h("p", { class: "muted" }, section.title),
      h("p", { class: "headline" }, data.verdict),
      facts(section, point),
      h("h2", { id: "answers" }, data.isDense ? "Answers" : "Answers, dense and sparse"),
      data.isDense ? null : h("p", { class: "muted" }, "Words that the other answer lacks are marked: ",
        h("del", null, "dense only"), ", ", h("ins", null, "sparse only"), "."),
      ...sah.examples(data),
      data.plots.length ? h("h2", null, "Figures of this point") : null,
      h("div", { class: "figures" }, data.plots.map((plot) => sah.figure(plot))),
      h("h2", null, "Compute it again"),
      h("div", { class: "command" }, h("code", null, data.command), sah.copyButton(data.command)),
      h("h2", null, "Provenance"),
      h("dl", { class: "facts" }, sah.facts([...own, ...data.provenance])),
    ].filter(Boolean);
  };

  const facts = (section, point) => {
    const known = section.columns.filter((column) => point.cells[column.key] !== undefined);
    return h("dl", { class: "tiles" }, known.map((column) => tile(column, point.cells[column.key])));
  };

  const tile = (column, cell) => {
    const written = (value) => (typeof value === "string" ? value : sah.fixed(value, column.digits, column.signed));
    const [value, ...ends] = [cell].flat();
    const interval = ends.length ? h("span", { class: "interval" }, ends.map(written).join(" to ")) : null;
    return h("div", { title: column.about }, h("dt", null, column.head), h("dd", null, written(value), interval));
  };
})();
