// The page: one axis and one window for every picture, the reader's theme, and news while a run trains.
"use strict";
(() => {
  const LABELS = {steps: "steps", tokens: "tokens", seconds: "seconds of training", flops: "FLOPs"};
  const page = {
    data: JSON.parse(document.getElementById("data").textContent), axis: "steps", log: false, window: null, charts: [], drawings: [],
    // The window in steps of the first run → values of the axis.
    view() {
      const run = this.data.runs[0];
      const ends = this.data.runs.flatMap(each => each.x[this.axis].filter(value => value !== null));
      const whole = [0, Math.max(...ends, 1)];
      if (!this.window) return whole;
      const edges = this.window.map(step => Lanes.position(run, this.axis, step));
      return edges[0] === null || edges[1] === null || edges[1] <= edges[0] ? whole : edges;
    },
    show(range) {
      const run = this.data.runs[0], last = Math.max(...this.data.runs.map(each => each.steps));
      this.window = range && range.map(value => Lanes.stepAt(run, this.axis, value));
      if (this.window && this.window[1] - this.window[0] < 2) this.window = [Math.max(0, this.window[0] - 1), Math.min(last, this.window[1] + 1)];
      this.rescale();
    },
    rescale() {
      const [min, max] = this.view();
      for (const chart of this.charts) chart.setScale("x", {min, max});
      document.getElementById("charts").dataset.view = `${min} ${max}`;
      this.timelines();
    },
    hover(value) {
      for (const drawing of this.drawings) {
        const x = value === null ? -1 : drawing.left + (value - drawing.view[0]) / (drawing.view[1] - drawing.view[0]) * (drawing.right - drawing.left);
        drawing.cursor.setAttribute("visibility", value === null ? "hidden" : "visible");
        for (const end of ["x1", "x2"]) drawing.cursor.setAttribute(end, x);
      }
      const run = this.data.runs[0], step = value === null ? null : Math.round(Lanes.stepAt(run, this.axis, value));
      const phase = step === null ? null : run.phases.find(each => step >= each.start && step < each.stop) || run.phases[run.phases.length - 1];
      document.getElementById("readout").textContent = step === null ? "" : `step ${step.toLocaleString("en")}${phase ? ` · ${phase.name}` : ""}`;
    },
    timelines() {
      const host = document.getElementById("timelines"), open = [...host.querySelectorAll("details")].map(each => each.open);
      host.replaceChildren();
      this.drawings = this.data.runs.map((run, i) => {
        const many = this.data.runs.length > 1;
        const figure = Object.assign(document.createElement("figure"), {className: "timeline"});
        let place = host;
        if (many) {
          place = host.appendChild(document.createElement("details"));
          place.open = open.length ? open[i] : i === 0;
          const summary = place.appendChild(document.createElement("summary"));
          const swatch = summary.appendChild(Object.assign(document.createElement("i"), {className: "swatch"}));
          swatch.style.color = `var(${Charts.colours[run.group % Charts.colours.length]})`;
          summary.append(run.name);
        }
        place.append(figure);
        const drawing = new Lanes.Drawing(run, this.axis, this.view(), host.clientWidth).draw();
        figure.append(drawing.svg);
        return drawing;
      });
    },
    meanings() {
      document.getElementById("meanings").replaceChildren(...Lanes.meanings(this.data.runs).map(([look, words]) => {
        const entry = document.createElement("span");
        entry.append(Object.assign(document.createElement("i"), {className: `look ${look}`}), words);
        return entry;
      }));
    },
    save() {
      const shown = this.drawings.find(each => each.svg.getClientRects().length) || this.drawings[0];
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([Lanes.picture(shown.svg)], {type: "image/svg+xml"}));
      link.download = `${shown.run.name}-timeline.svg`;
      link.click();
      URL.revokeObjectURL(link.href);
    },
    build() {
      const host = document.getElementById("charts");
      for (const chart of this.charts) chart.destroy();
      host.replaceChildren();
      this.timelines();
      this.meanings();
      this.charts = Charts.specifications(this.data).map(spec => Charts.draw(host, spec, this));
      host.dataset.view = this.view().join(" ");
      const run = this.data.runs[0], note = document.getElementById("sampling");
      if (note && this.data.buckets) {
        const long = this.data.runs.some(each => (each.done || 0) > 2 * this.data.buckets);
        note.textContent = (long ? `Of long curves the lowest and highest of each of ${this.data.buckets} stretches are drawn. ` : "") +
          (run.half_life ? `Smoothed: mean with a half-life of ${run.half_life} steps, anew in each phase.` : "");
      }
      for (const swatch of document.querySelectorAll(".swatch[data-group]")) swatch.style.color = `var(${Charts.colours[swatch.dataset.group % Charts.colours.length]})`;
    },
  };

  function axes() {
    const host = document.getElementById("axes"), known = Object.keys(LABELS).filter(axis => page.data.runs.every(run => run.x[axis] && Math.max(...run.x[axis].filter(value => value !== null)) > 0));
    if (host.dataset.known === known.join()) return;
    host.dataset.known = known.join();
    host.replaceChildren(...known.map(axis => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), {type: "radio", name: "axis", value: axis, checked: axis === page.axis});
      input.addEventListener("change", () => { page.axis = axis; page.build(); });
      label.append(input, LABELS[axis]);
      return label;
    }));
  }

  function zoom(how) {
    const [low, high] = page.view(), width = high - low, whole = page.window;
    page.window = null;
    const [first, last] = page.view();
    page.window = whole;
    if (how === "all") return page.show(null);
    const moved = {in: [low + width / 4, high - width / 4], out: [low - width / 2, high + width / 2], left: [low - width / 2, high - width / 2], right: [low + width / 2, high + width / 2]}[how];
    if (how === "left" && moved[0] < first) { moved[1] += first - moved[0]; moved[0] = first; }
    if (how === "right" && moved[1] > last) { moved[0] -= moved[1] - last; moved[1] = last; }
    const cut = [Math.max(first, moved[0]), Math.min(last, moved[1])];
    page.show(cut[0] <= first && cut[1] >= last ? null : cut);
  }

  function listen() {
    document.getElementById("toolbar").addEventListener("click", event => { if (event.target.dataset.zoom) zoom(event.target.dataset.zoom); });
    document.getElementById("picture").addEventListener("click", () => page.save());
    document.getElementById("log").addEventListener("change", event => { page.log = event.target.checked; page.build(); });
    document.getElementById("theme").addEventListener("change", event => {
      if (event.target.value) document.documentElement.dataset.theme = event.target.value; else delete document.documentElement.dataset.theme;
      page.build();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.build());
    let width = document.getElementById("charts").clientWidth, wait = 0;
    new ResizeObserver(() => {
      const now = document.getElementById("charts").clientWidth;
      if (now === width) return;
      width = now;
      clearTimeout(wait);
      wait = setTimeout(() => page.build(), 80);
    }).observe(document.getElementById("charts"));
    addEventListener("beforeprint", () => {
      for (const each of document.querySelectorAll("details")) each.open = true;
      Object.assign(document.body.style, {width: "700px", padding: "0"});
      document.documentElement.dataset.theme = "light";
      page.build();
    });
    addEventListener("afterprint", () => {
      Object.assign(document.body.style, {width: "", padding: ""});
      const chosen = document.getElementById("theme").value;
      if (chosen) document.documentElement.dataset.theme = chosen; else delete document.documentElement.dataset.theme;
      page.build();
    });
  }

  // News of a run that trains: the page again, whose words and data replace these; axis, window and theme stay.
  async function follow(tag) {
    let pause = 2000;
    try {
      const answer = await fetch(location.href, {headers: tag ? {"If-None-Match": tag} : {}, cache: "no-store"});
      if (answer.status === 200) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        tag = answer.headers.get("ETag");
        const open = [...document.querySelectorAll("#static details")].map(each => each.open);
        for (const place of ["#static", "header"]) document.querySelector(place).replaceWith(document.adoptNode(fresh.querySelector(place)));
        document.querySelectorAll("#static details").forEach((each, i) => { if (open[i] !== undefined) each.open = open[i]; });
        page.data = JSON.parse(fresh.getElementById("data").textContent);
        axes();
        page.build();
      }
    } catch (error) {
      document.getElementById("readout").textContent = "the server has gone: what is shown stays";
      pause = 10000;
    }
    setTimeout(() => follow(tag), pause);
  }

  for (const id of ["toolbar", "picture"]) document.getElementById(id).hidden = false;
  if (!Charts.specifications(page.data).some(spec => spec.logable)) document.getElementById("log").parentElement.hidden = true;
  axes();
  listen();
  page.build();
  document.documentElement.dataset.ready = "yes";
  if ("live" in document.body.dataset) setTimeout(() => follow(null), 2000);
})();
