"use strict";
// The answers of a point: filtered, sorted, paged; dense and sparse side by side with the words that differ marked.

(() => {
  const { h } = sah;
  const PAGE = 20, MOST_WORDS = 400;

  const text = (answer) => (answer ? answer.text ?? "" : "");
  const score = (row, arm) => row[arm]?.score;
  const loss = (row) => {
    const [dense, sparse] = [score(row, "dense"), score(row, "sparse")];
    return dense === undefined || sparse === undefined ? null : dense - sparse;
  };
  const lacking = (answer) => answer && (answer.status !== "ok" || answer.score === undefined);
  const failed = (row) => lacking(row.dense) || lacking(row.sparse);
  const differs = (row) => row.dense && row.sparse && text(row.dense).trim() !== text(row.sparse).trim();
  const main = (data, row) => score(row, data.isDense ? "dense" : "sparse");

  const FILTERS = {
    all: ["all questions", () => true],
    differs: ["text differs from dense", differs],
    worse: ["scored below dense", (row) => loss(row) !== null && loss(row) > 0],
    better: ["scored above dense", (row) => loss(row) !== null && loss(row) < 0],
    wrong: ["score below 1", (row, data) => main(data, row) !== undefined && main(data, row) < 1],
    right: ["score 1", (row, data) => main(data, row) === 1],
    failed: ["failed or not scored", failed],
  };
  const MARKS = { loss: ["worse", "▼ loss"], gain: ["better", "▲ gain"] };
  const TITLES = { dense: "Dense", sparse: "Sparse" };
  const SPARSE_ONLY = ["differs", "worse", "better"];

  sah.examples = (data) => {
    const names = Object.keys(FILTERS).filter((name) => !data.isDense || !SPARSE_ONLY.includes(name));
    const count = (name) => data.rows.filter((row) => FILTERS[name][1](row, data)).length;
    const kind = h("select", { id: "example-filter", "aria-label": "Questions to show" },
      names.map((name) => h("option", { value: name }, `${FILTERS[name][0]} (${count(name)})`)));
    const order = h("select", { "aria-label": "Order of questions" }, h("option", { value: "" }, "in order"),
      data.isDense ? null : h("option", { value: "loss" }, "largest loss first"),
      h("option", { value: "score" }, "lowest score first"));
    const words = h("input", { type: "search", placeholder: "Search answers", "aria-label": "Search answers" });
    const list = h("div", { id: "examples" });
    const pager = h("nav", { class: "pager", "aria-label": "Pages of questions" });
    let page = 0;

    const found = () => {
      const asked = words.value.toLowerCase();
      const fits = (row) => FILTERS[kind.value][1](row, data) && (!asked || everything(row).includes(asked));
      const rows = data.rows.filter(fits);
      if (order.value === "loss") rows.sort((a, b) => (loss(b) ?? -Infinity) - (loss(a) ?? -Infinity));
      if (order.value === "score") rows.sort((a, b) => (main(data, a) ?? Infinity) - (main(data, b) ?? Infinity));
      return rows;
    };
    const show = () => {
      const rows = found();
      const pages = Math.max(1, Math.ceil(rows.length / PAGE));
      page = Math.max(0, Math.min(page, pages - 1));
      const start = page * PAGE;
      list.replaceChildren(...rows.slice(start, start + PAGE).map((row) => card(data, row)));
      if (!rows.length) list.append(h("p", { class: "muted" }, "No question fits."));
      const step = (by, name) => {
        const out = page + by < 0 || page + by >= pages;
        const button = h("button", { type: "button", disabled: out }, name);
        button.addEventListener("click", () => {
          page += by;
          show();
          list.scrollIntoView({ block: "start" });
        });
        return button;
      };
      const last = Math.min(rows.length, start + PAGE);
      const told = rows.length ? `${start + 1} to ${last} of ${rows.length}` : "0";
      pager.replaceChildren(step(-1, "Previous"), h("span", { role: "status" }, told), step(1, "Next"));
      pager.hidden = rows.length <= PAGE;
    };
    const again = () => {
      page = 0;
      show();
    };
    kind.addEventListener("change", again);
    order.addEventListener("change", again);
    words.addEventListener("input", again);
    show();
    return [h("div", { class: "controls" }, kind, order, words), list, pager];
  };

  const everything = (row) => [text(row.dense), text(row.sparse), ...row.answers, row.prefix].join("\n").toLowerCase();

  const card = (data, row) => {
    const number = data.rows.indexOf(row) + 1;
    const brief = (value) => (typeof value === "number" ? +value.toFixed(3) : value);
    const about = Object.entries(row.about).map(([name, value]) => `${name} ${brief(value)}`);
    const wanted = row.answers.length ? h("p", { class: "wanted" },
      sah.muted(row.answers.length > 1 ? "References: " : "Reference: "),
      row.answers.map((answer, place) => [place ? " · " : "", h("q", null, answer)])) : null;
    const lost = loss(row);
    const mark = lost === null || lost === 0 ? "" : lost > 0 ? "loss" : "gain";
    const arms = data.isDense ? [arm("dense", row.dense, [text(row.dense)])] : both(row);
    return h("article", { class: `example ${mark}`, "data-key": row.key },
      h("h4", null, `Question ${number}`, mark ? h("span", { class: `chip ${MARKS[mark][0]}` }, MARKS[mark][1]) : null),
      h("p", { class: "muted about" }, about.join(" · ")), wanted,
      row.prefix ? h("p", { class: "wanted" }, sah.muted("Answers begin after: "), h("q", null, row.prefix)) : null,
      h("div", { class: data.isDense ? "arms one" : "arms" }, arms));
  };

  const both = (row) => {
    if (!row.dense || !row.sparse) return ["dense", "sparse"].map((name) => arm(name, row[name], [text(row[name])]));
    const [dense, sparse, known] = sah.marked(text(row.dense), text(row.sparse));
    return [arm("dense", row.dense, dense, known), arm("sparse", row.sparse, sparse, known)];
  };

  const arm = (name, answer, content, known = true) => {
    const box = h("div", { class: `arm ${name}` });
    if (!answer) {
      box.append(h("p", { class: "arm-head" }, h("strong", null, TITLES[name])), h("p", { class: "muted" }, "no row"));
      return box;
    }
    const told = [answer.score === undefined ? "not scored" : `score ${sah.fixed(answer.score, 3)}`];
    if (answer.tokens !== undefined) told.push(sah.plural(answer.tokens, "token"));
    if (answer.stop === "length") told.push("cut at the limit");
    if (answer.density !== undefined) told.push(`density ${sah.fixed(answer.density, 4)}`);
    box.append(h("p", { class: "arm-head" }, h("strong", null, TITLES[name]), sah.muted(` ${told.join(" · ")}`)));
    if (answer.status === "ok") {
      box.append(h("p", { class: "answer", dir: "auto" }, text(answer) === "" ? sah.muted("(no text)") : content));
    } else {
      box.append(h("p", { class: "alert" }, `${answer.status}: ${answer.error ?? "no reason was noted"}`));
    }
    if (!known) box.append(h("p", { class: "muted" }, "Too long for marking differences."));
    return box;
  };

  // Words of both texts, those that the other lacks marked: the longest common subsequence is what they share.
  sah.marked = (dense, sparse) => {
    const a = dense.split(/(\s+)/).filter(Boolean), b = sparse.split(/(\s+)/).filter(Boolean);
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const left = a.slice(start, a.length - end), right = b.slice(start, b.length - end);
    if (left.length > MOST_WORDS || right.length > MOST_WORDS) return [[dense], [sparse], false];
    const [inLeft, inRight] = shared(left, right);
    const around = (words, kept, tag) => [
      words.slice(0, start).join(""),
      ...kept.map((same, place) => {
        const word = words[start + place];
        return same || !word.trim() ? word : h(tag, null, word);
      }),
      words.slice(words.length - end).join(""),
    ];
    return [around(a, inLeft, "del"), around(b, inRight, "ins"), true];
  };

  const shared = (left, right) => {
    const lengths = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
    for (let i = left.length - 1; i >= 0; i--) {
      for (let j = right.length - 1; j >= 0; j--) {
        const without = Math.max(lengths[i + 1][j], lengths[i][j + 1]);
        lengths[i][j] = left[i] === right[j] ? lengths[i + 1][j + 1] + 1 : without;
      }
    }
    const inLeft = left.map(() => false), inRight = right.map(() => false);
    for (let i = 0, j = 0; i < left.length && j < right.length;) {
      if (left[i] === right[j]) inLeft[i++] = inRight[j++] = true;
      else if (lengths[i + 1][j] >= lengths[i][j + 1]) i++;
      else j++;
    }
    return [inLeft, inRight];
  };
})();
