"use strict";
// Shows the overview or a point, by the address: #/ or #g1 for the overview, #/p/3 for a point.

(() => {
  const { h } = sah;
  const overview = document.getElementById("overview"), pointBox = document.getElementById("point");
  const data = sah.data.index;

  document.getElementById("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    sah.keep("sah-theme", theme);
    sah.setTheme(theme);
  });
  sah.setTheme(sah.keep("sah-theme"));
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  preferred.addEventListener("change", () => sah.setTheme(sah.keep("sah-theme")));

  if (!data) {
    overview.append(h("p", { class: "alert" },
      "data/index.js cannot be read: copy the whole folder of the report, or write it again."));
    return;
  }
  document.title = `${data.title} – sah report`;
  overview.append(...sah.overview(data));
  const groups = data.sections.filter((section) => !section.needles);
  if (data.sections.length > 1 && data.sections.length <= 6) {
    document.getElementById("sections").append(...data.sections.map(({ slug, title }, place) =>
      h("a", { href: `#${slug}`, title, "aria-label": `Section ${place + 1}: ${title}` }, `${place + 1}`)));
  }
  document.getElementById("sections").append(h("a", { href: "#provenance" }, "Provenance"));

  let scrolled = 0;

  const showOverview = (anchor) => {
    const back = overview.hidden;
    overview.hidden = false;
    pointBox.hidden = true;
    document.title = `${data.title} – sah report`;
    const target = anchor && document.getElementById(anchor);
    if (target && target.tagName === "DETAILS") target.open = true;
    if (back) window.scrollTo(0, scrolled);
    else if (target) target.scrollIntoView();
  };

  const showPoint = async (place) => {
    const section = groups.find((group) => group.points.some((point) => point.place === place));
    if (!section) return showOverview();
    const point = section.points.find((candidate) => candidate.place === place);
    if (!overview.hidden) scrolled = window.scrollY;
    let content;
    try {
      content = sah.pointPage(section, point, await sah.load(`p${place}`), section.points);
    } catch (error) {
      content = [h("p", null, h("a", { href: "#/" }, "← All points")), h("p", { class: "alert" }, error.message)];
    }
    if (location.hash !== `#/p/${place}`) return; // another one was asked for meanwhile
    overview.hidden = true;
    pointBox.hidden = false;
    pointBox.replaceChildren(...content);
    document.title = `${point.name} – sah report`;
    window.scrollTo(0, 0);
    document.getElementById("main").focus({ preventScroll: true });
  };

  const route = () => {
    sah.tip(null);
    const found = /^#\/p\/(\d+)$/.exec(location.hash);
    if (found) showPoint(Number(found[1]));
    else showOverview(location.hash.replace(/^#\/?/, ""));
  };
  window.addEventListener("hashchange", route);
  window.addEventListener("keydown", (event) => event.key === "Escape" && sah.tip(null));
  route();
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = "true";
    performance.mark("sah-ready");
  });
})();
