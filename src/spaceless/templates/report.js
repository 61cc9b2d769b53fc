(() => {
  "use strict";
  // The pictures and tables are already there; where scripts run, they answer to the pointer and to the keyboard.
  const every = Number(document.documentElement.dataset.every);

  // ---- what a reader has chosen outlives the reloading of a page that is watched
  const kept = {};
  try {
    if (every) Object.assign(kept, JSON.parse(sessionStorage.getItem(location.pathname)) || {});
  } catch { /* nothing is kept */ }
  const keep = (name, value) => {
    kept[name] = value;
    try {
      if (every) sessionStorage.setItem(location.pathname, JSON.stringify(kept));
    } catch { /* nothing is kept */ }
  };

  const make = (tag, fields = {}, ...inside) => {
    const made = Object.assign(document.createElement(tag), fields);
    made.append(...inside);
    return made;
  };

  // ---- charts
  const refuse = () => Promise.reject(new Error("this page loads nothing"));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };

  const fit = (spec, room, beside = spec.usermeta.beside) => {
    const copy = { ...spec };
    if (copy.width && copy.width + beside > room) copy.width = Math.max(150, room - beside);
    if (copy.columns && room < 700) copy.columns = 1;
    if (copy.layer && room < 560) copy.layer = copy.layer.filter((part) => part.name !== "words");
    for (const key of ["vconcat", "hconcat", "concat", "layer"]) {
      if (copy[key]) copy[key] = copy[key].map((part) => fit(part, room, beside));
    }
    return copy;
  };

  const outlines = {
    "circle": "M6 1a5 5 0 1 1 0 10a5 5 0 1 1 0-10Z", "square": "M1.5 1.5h9v9h-9Z", "diamond": "M6 0l5 6l-5 6l-5-6Z",
    "triangle-up": "M6 1l6 10h-12Z", "triangle-down": "M6 11l6-10h-12Z", "triangle-right": "M11 6l-10 6v-12Z",
    "triangle-left": "M1 6l10 6v-12Z",
  };
  const swatch = (entry) => {
    const space = "http://www.w3.org/2000/svg";
    const picture = document.createElementNS(space, "svg");
    const path = document.createElementNS(space, "path");
    picture.setAttribute("viewBox", "0 0 12 12");
    picture.setAttribute("aria-hidden", "true");
    path.setAttribute("d", outlines[entry.shape] || outlines.circle);
    path.setAttribute("fill", entry.hollow ? "none" : entry.colour);
    path.setAttribute("stroke", entry.colour);
    path.setAttribute("stroke-width", "1.6");
    picture.append(path);
    return picture;
  };

  const told = (values, plain) => { // what is not known is not told
    const lines = Object.entries(values).filter(([, text]) => text !== "");
    const cell = (kind, text) => `<td class="${kind}">${plain(text)}</td>`;
    return `<table>${lines.map(([name, text]) => `<tr>${cell("key", name)}${cell("value", text)}</tr>`).join("")}</table>`;
  };

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.name = figure.dataset.chart;
      Object.assign(this, JSON.parse(document.getElementById(this.name).textContent));
      const names = this.legend.map((entry) => entry.name);
      this.hidden = (kept[`${this.name} hidden`] || []).filter((name) => names.includes(name));
      this.view = this.views.find((view) => view.name === kept[`${this.name} view`]) || this.views[0];
    }

    async draw() {
      const room = this.figure.clientWidth;
      const config = { ...this.config, legend: { ...this.config.legend, disable: true }, aria: false };
      const params = this.view.spec.params.map((each) => each.name === "hidden" ? { ...each, value: this.hidden } : each);
      const description = this.figure.querySelector("figcaption").firstChild.textContent;
      const spec = { ...fit(this.view.spec, room), params, config, description, datasets: this.datasets };
      const drawn = make("div", { className: "drawn", ariaLabel: description, role: "img" }); // the numbers: see the tables
      this.figure.querySelector(".picture").after(drawn);
      try {
        const made = await window.vegaEmbed(drawn, spec, {
          mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, ast: true, loader,
          logLevel: 1, // errors: a line whose every mark is hidden is worth no warning
          tooltip: { theme: "page", disableDefaultStyle: true, formatTooltip: told },
        });
        if (this.made) this.made.finalize();
        this.made = made;
      } catch (error) {
        drawn.remove();
        throw error;
      }
      for (const old of this.figure.querySelectorAll(".picture, .drawn")) {
        if (old !== drawn) old.remove();
      }
      drawn.className = "picture drawn";
      if (drawn.scrollWidth > drawn.clientWidth) drawn.tabIndex = 0; // so that the keyboard scrolls it
      this.figure.dataset.room = room;
      if (!this.controls) this.control();
      this.figure.classList.toggle("alive", this.legend.length > 0);
    }

    control() {
      this.controls = make("div", { className: "controls" });
      if (this.legend.length) {
        const names = make("div", { className: "legend" });
        names.setAttribute("role", "group");
        names.setAttribute("aria-label", "Lines shown");
        for (const entry of this.legend) {
          const button = make("button", { type: "button" }, swatch(entry), make("span", { textContent: entry.name }));
          const tell = () => button.setAttribute("aria-pressed", String(!this.hidden.includes(entry.name)));
          button.addEventListener("click", () => {
            const { name } = entry;
            this.hidden = this.hidden.includes(name) ? this.hidden.filter((n) => n !== name) : [...this.hidden, name];
            keep(`${this.name} hidden`, this.hidden);
            tell();
            this.made.view.signal("hidden", this.hidden).runAsync();
          });
          tell();
          names.append(button);
        }
        this.controls.append(names);
      }
      if (this.views.length > 1) {
        const places = make("fieldset", { className: "place" }, make("legend", { textContent: "against" }));
        for (const view of this.views) {
          const choice = make("input", { type: "radio", name: this.name, checked: view === this.view });
          choice.addEventListener("change", () => {
            this.view = view;
            keep(`${this.name} view`, view.name);
            this.draw().catch(console.error);
          });
          places.append(make("label", {}, choice, make("span", { textContent: view.name })));
        }
        this.controls.append(places);
      }
      this.figure.prepend(this.controls);
    }
  }

  // ---- tables: a click on a heading sorts, a third one brings the old order back; what is missing comes last
  const value = (cell, numeric) => {
    const text = cell.textContent.trim();
    if (!numeric) return text;
    const found = parseFloat(text.replace(/\u2212/g, "-").replace(/,/g, ""));
    return Number.isNaN(found) ? null : found;
  };
  const sortable = (table, name) => {
    const body = table.tBodies[0];
    const first = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const sort = (column, order) => {
      const numeric = heads[column].classList.contains("n");
      const sign = order === "descending" ? -1 : 1;
      const lines = first.map((row, index) => ({ row, index, key: value(row.cells[column], numeric) }));
      if (order) {
        lines.sort((a, b) => {
          if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.index - b.index;
          const by = numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
          return sign * by || a.index - b.index;
        });
      }
      table.classList.toggle("sorted", Boolean(order));
      body.append(...lines.map((line) => line.row));
      heads.forEach((head, index) => {
        if (order && index === column) head.setAttribute("aria-sort", order);
        else head.removeAttribute("aria-sort");
      });
      keep(name, order ? [column, order] : null);
    };
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" });
      button.append(...[...head.childNodes]);
      button.firstChild.after(make("span", { className: "order", ariaHidden: "true" }));
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "" };
        const now = head.getAttribute("aria-sort");
        sort(column, now ? next[now] : "ascending");
      });
    });
    const [column, order] = kept[name] || [];
    if (heads[column] && ["ascending", "descending"].includes(order)) sort(column, order);
  };
  document.querySelectorAll("table").forEach((table, index) => sortable(table, `table ${index}`));

  const charts = [...document.querySelectorAll("figure[data-chart]")].map((figure) => new Chart(figure));
  const all = (changed) => Promise.all(charts.map((chart) => {
    if (changed && chart.figure.dataset.room === String(chart.figure.clientWidth)) return null;
    return chart.draw().catch(console.error);
  }));
  all(false).then(() => document.body.classList.add("ready"));
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => all(true), 200);
  });

  // ---- a page that is watched loads itself again, unless its reader has said no
  if (every) {
    const box = make("input", { type: "checkbox", checked: kept.stopped !== true });
    box.addEventListener("change", () => keep("stopped", !box.checked));
    document.querySelector(".watched").append(make("label", {}, box, `load again every ${every} seconds`));
    setInterval(() => {
      if (box.checked) location.reload();
    }, 1000 * every);
  }
})();
