(() => {
  "use strict";
  // The pictures are already there; where scripts run, each is replaced by one that answers to the pointer.
  const refuse = () => Promise.reject(new Error("this page loads nothing"));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };

  const fit = (spec, room, beside = spec.columns ? 100 : 70) => {
    const copy = { ...spec };
    if (copy.width && copy.width + beside > room) copy.width = Math.max(180, room - beside);
    if (copy.columns && room < 700) copy.columns = 1;
    for (const key of ["vconcat", "hconcat", "concat", "layer"]) {
      if (copy[key]) copy[key] = copy[key].map((part) => fit(part, room, beside));
    }
    if (room < 560 && copy.config && copy.config.legend) {
      copy.config = { ...copy.config, legend: { ...copy.config.legend, direction: "vertical" } };
    }
    return copy;
  };

  const draw = async (figure) => {
    const spec = JSON.parse(document.getElementById(figure.dataset.chart).textContent);
    const room = figure.clientWidth;
    const live = document.createElement("div");
    live.className = "live";
    figure.querySelector(".picture").after(live);
    await window.vegaEmbed(live, fit(spec, room), {
      mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, loader,
      tooltip: { theme: "page", disableDefaultStyle: true },
    });
    for (const old of figure.querySelectorAll(".picture, .live")) {
      if (old !== live) old.remove();
    }
    live.className = "picture live";
    figure.dataset.room = room;
    figure.classList.add("answers");
  };

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const all = (changed) => figures.forEach((figure) => {
    if (changed && figure.dataset.room === String(figure.clientWidth)) return;
    draw(figure).catch((error) => {
      figure.querySelectorAll(".live:not(.picture)").forEach((part) => part.remove());
      console.error(error);
    });
  });
  all(false);
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => all(true), 200);
  });
})();
