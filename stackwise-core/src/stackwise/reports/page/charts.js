// The curves: what is drawn in which chart, and one uPlot chart over the shared axis.
"use strict";
const Charts = (() => {
  const WORDS = {lr: "learning rate", grad_norm: "gradient norm", throughput: "tokens a second"};
  const named = key => WORDS[key] || key.replaceAll("_", " ");
  const colours = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
  const resolve = name => {
    const probe = document.getElementById("probe") || document.body.appendChild(Object.assign(document.createElement("i"), {id: "probe", hidden: true}));
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const faded = (colour, share) => colour.replace(/^rgb\((.*)\)$/, (_, parts) => `rgba(${parts}, ${share})`);

  // A series: where (steps), what, and how it looks.
  function curve(run, key, options) {
    const found = run.curves[key];
    return found && {...options, key, run, steps: found.at.map(row => run.x.steps[row]), rows: found.at, v: found.v};
  }

  function specifications(data) {
    const many = data.runs.length > 1, specs = [];
    const add = (title, series, options = {}) => { series = series.filter(Boolean); if (series.length) specs.push({title, series, ...options}); };
    const of = make => data.runs.flatMap((run, i) => make(run, many ? colours[run.group % colours.length] : null, many ? ` ${run.name}` : "", i));
    const measured = run => [...Object.keys(run.curves).filter(key => key === "loss" || (key.startsWith("metrics.") && !key.endsWith(".smooth"))).map(key => key.replace("metrics.", "")), ...run.evaluations.flatMap(each => Object.keys(each.metrics))];
    const metrics = [...new Set(data.runs.flatMap(measured))].sort((a, b) => (b === "loss") - (a === "loss"));
    for (const metric of metrics) {
      const key = metric === "loss" ? "loss" : `metrics.${metric}`;
      add(named(metric), of((run, colour, name) => [
        curve(run, key, {label: `training${name}`, colour: colour || "--c0", faint: true}),
        curve(run, `${key}.smooth`, {label: `smoothed${name}`, colour: colour || "--c0", width: many ? 1.5 : 2}),
        ...evaluationSeries(run, metric, colour, name),
      ]), {tall: metric === "loss", logable: metric === "loss"});
    }
    add("learning rate", of((run, colour, name) => Object.keys(run.curves).filter(key => key === "lr" || key.startsWith("rates.")).map((key, j) =>
      curve(run, key, {label: `${key.replace("rates.", "")}${name}`, colour: colour || colours[(j + 2) % colours.length], width: 1.5}))));
    add("gradient norm", of((run, colour, name) => [
      curve(run, "grad_norm", {label: `before clipping${name}`, colour: colour || "--c3", faint: true}),
      curve(run, "grad_norm.smooth", {label: `smoothed${name}`, colour: colour || "--c3", width: 1.5})]), {log: true});
    add("tokens a second", of((run, colour, name) => [
      curve(run, "throughput", {label: `each step${name}`, colour: colour || "--c5", faint: true}),
      curve(run, "throughput.smooth", {label: `smoothed${name}`, colour: colour || "--c5", width: 1.5})]), {zero: true});
    declared(data.runs[0], add);
    return specs;
  }

  function evaluationSeries(run, metric, colour, name) {
    const names = [...new Set(run.evaluations.map(each => each.name))];
    return names.flatMap((evaluation, j) => [false, true].map(entry => {
      const points = run.evaluations.filter(each => each.name === evaluation && (each.at === "entry") === entry && each.metrics[metric] !== undefined);
      return points.length ? {label: `${evaluation}${entry ? " after a boundary" : ""}${name}`, colour: colour || colours[(j + 1) % colours.length], points: entry ? "ring" : "dot", run, evaluation, steps: points.map(each => each.step), v: points.map(each => each.metrics[metric])} : null;
    }));
  }

  // What the plan declares of the mixture and of other values that move, from the first run.
  function declared(run, add) {
    const lines = new Map();
    const put = (title, label, i, samples) => {
      const line = lines.get(title) || new Map();
      lines.set(title, line);
      const series = line.get(label) || {label, run, steps: [], v: []};
      line.set(label, series);
      for (const [step, value] of [...samples, [run.phases[i].stop - 1e-6, samples[samples.length - 1][1]]]) { series.steps.push(step); series.v.push(value); }
    };
    const groups = run.lanes.flatMap(lane => [...Object.values(lane.optimizer.groups), {ema: lane.optimizer.ema || []}]);
    const moving = new Set(groups.flatMap(values => Object.entries(values).filter(([, samples]) => samples.length > 1).map(([key]) => key)));
    run.lanes.forEach((lane, i) => {
      const mix = Object.entries(lane.data.mix);
      const cuts = [...new Set(mix.flatMap(([, samples]) => samples.map(pair => pair[0])))].sort((a, b) => a - b);
      const at = (samples, step) => samples.reduce((value, pair) => (pair[0] <= step ? pair[1] : value), samples[0][1]);
      for (const [name, samples] of mix) put("mixture", name, i, cuts.map(step => [step, at(samples, step) / (mix.reduce((sum, [, other]) => sum + at(other, step), 0) || 1)]));
      for (const plane of ["task", "data", "model"]) for (const [name, samples] of Object.entries(lane[plane].values)) put(name, name, i, samples);
      if (lane.model.gate) put("gate of grown blocks", "gate", i, lane.model.gate);
      for (const [name, values] of Object.entries(lane.optimizer.groups)) for (const [key, samples] of Object.entries(values)) {
        if (!key.endsWith("lr")) { if (moving.has(key)) put(key.replaceAll("_", " "), name, i, samples); }
        else if (!run.curves.loss) put("learning rate", `${name} ${key}`, i, samples);
      }
      if (lane.optimizer.ema && moving.has("ema")) put("decay of averaged weights", "ema", i, lane.optimizer.ema);
    });
    for (const [title, line] of lines) {
      if (title === "mixture" && line.size < 2) continue;
      add(`${title}, as declared`, [...line.values()].map((series, j) => ({...series, colour: colours[j % colours.length], width: 1.5})), {zero: true});
    }
  }

  const positions = (series, axis) => series.steps.map((step, i) => (series.rows ? series.run.x[axis][series.rows[i]] : Lanes.position(series.run, axis, step)));

  function shown(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    return size >= 1e4 ? Lanes.compact(value) : size < 1e-3 && size > 0 ? value.toExponential(2) : `${+value.toPrecision(4)}`;
  }

  function nearest(u, series, cursorIndex) {
    const values = u.data[series];
    if (series === 0 || (values[cursorIndex] !== null && values[cursorIndex] !== undefined)) return cursorIndex;
    let low = cursorIndex, high = cursorIndex;
    while (low >= 0 || high < values.length) {
      if (low >= 0 && values[low] !== null && values[low] !== undefined) return low;
      if (high < values.length && values[high] !== null && values[high] !== undefined) return high;
      low--; high++;
    }
    return cursorIndex;
  }

  function draw(host, spec, page) {
    const figure = host.appendChild(document.createElement("figure"));
    figure.className = "chart";
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.append(Object.assign(document.createElement("b"), {textContent: spec.title}));
    const tables = spec.series.map(series => [positions(series, page.axis), series.v]).map(([xs, vs]) => {
      const kept = xs.map((x, i) => i).filter(i => xs[i] !== null && (i === 0 || xs[i] > xs[i - 1]) && !(spec.log && vs[i] !== null && vs[i] <= 0));
      return [kept.map(i => xs[i]), kept.map(i => vs[i])];
    });
    const text = resolve("--mute"), grid = resolve("--line"), boundary = resolve("--fg");
    const logarithmic = spec.log || (spec.logable && page.log);
    const keys = legend(caption, spec, page.data.runs.length > 1, () => chart);
    const chart = new uPlot({
      width: host.clientWidth, height: spec.tall ? Math.max(220, Math.min(320, window.innerHeight * 0.36)) : 132,
      padding: [8, Lanes.RIGHT, 0, 0], legend: {show: false},
      cursor: {sync: {key: "page", setSeries: false}, drag: {x: true, y: false, setScale: false}, y: false, dataIdx: nearest, points: {size: 6}, bind: {dblclick: () => () => { page.show(null); return null; }}},
      scales: {x: {time: false, range: () => page.view()}, y: {distr: logarithmic ? 3 : 1, ...(spec.zero ? {range: (u, low, high) => [Math.min(0, low || 0), (high || 1) * 1.06]} : {})}},
      axes: [
        {stroke: text, font: "11px system-ui, sans-serif", grid: {show: false}, ticks: {stroke: grid, size: 4}, size: 26, values: (u, ticks) => ticks.map(Lanes.compact)},
        {stroke: text, font: "11px system-ui, sans-serif", grid: {stroke: grid, width: 1}, ticks: {show: false}, size: Lanes.gutter(host.clientWidth), space: 32,
          values: (u, ticks) => ticks.map(tick => (tick === null ? "" : Math.abs(tick) < 1e-3 && tick ? tick.toExponential(0) : Lanes.compact(tick)))},
      ],
      series: [{}, ...spec.series.map(series => look(series))],
      hooks: {
        drawClear: [u => dashes(u, page, boundary)],
        draw: [u => jumps(u, spec, page)],
        setSelect: [u => { if (u.select.width > 4) page.show([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]); u.setSelect({left: 0, width: 0, top: 0, height: 0}, false); }],
        setCursor: [u => {
          const inside = u.cursor.left >= 0;
          if (inside) page.hover(u.posToVal(u.cursor.left, "x"));
          else page.hover(null);
          for (const key of keys) {
            const index = inside ? u.cursor.idxs[key.told + 1] : null;
            key.value.textContent = index === null || index === undefined ? "" : shown(u.data[key.told + 1][index]);
          }
        }],
      },
    }, uPlot.join(tables), figure);
    chart.root.setAttribute("role", "img");
    chart.root.setAttribute("aria-label", `${spec.title} over ${page.axis}: ${spec.series.map(series => `${series.label} from ${shown(series.v[0])} to ${shown(series.v[series.v.length - 1])}`).join("; ")}`);
    return chart;
  }

  function look(series) {
    const colour = resolve(series.colour);
    if (series.points) return {label: series.label, paths: () => null, points: {show: true, size: 8, width: 2, stroke: colour, fill: series.points === "ring" ? resolve("--bg") : colour}};
    return {label: series.label, stroke: series.faint ? faded(colour, 0.34) : colour, width: series.width || 1, spanGaps: false, pxAlign: 0, points: {show: false}};
  }

  // A key for each series, or for each run where there are several: what it hides, and whose value it tells.
  function legend(caption, spec, many, chart) {
    const indices = spec.series.map((_, i) => i);
    const groups = many ? [...new Set(spec.series.map(series => series.run))].map(run => indices.filter(i => spec.series[i].run === run)) : indices.map(i => [i]);
    return groups.map(group => {
      const told = many ? group.find(i => !spec.series[i].faint) ?? group[0] : group[0], series = spec.series[told];
      const key = caption.appendChild(Object.assign(document.createElement("button"), {className: "key", type: "button"}));
      key.setAttribute("aria-pressed", "true");
      const mark = key.appendChild(document.createElement("i"));
      mark.className = (!many && series.points) || "";
      mark.style.color = `var(${series.colour})`;
      if (series.faint) mark.style.opacity = 0.4;
      key.append(many ? series.run.name : series.label);
      key.addEventListener("click", () => {
        const on = key.getAttribute("aria-pressed") !== "true";
        key.setAttribute("aria-pressed", String(on));
        for (const i of group) chart().setSeries(i + 1, {show: on});
      });
      return {told, value: key.appendChild(document.createElement("span"))};
    });
  }

  function dashes(u, page, colour) {
    const {ctx, bbox} = u, run = page.data.runs[0];
    ctx.save();
    ctx.strokeStyle = faded(colour, 0.45);
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    for (const phase of run.phases.slice(1)) {
      const value = Lanes.position(run, page.axis, phase.start);
      if (value === null || value < u.scales.x.min || value > u.scales.x.max) continue;
      const x = Math.round(u.valToPos(value, "x", true));
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }
    ctx.restore();
  }

  // Both sides of a boundary, joined where they differ.
  function jumps(u, spec, page) {
    spec.series.forEach((series, i) => {
      const before = spec.series[i - 1];
      if (series.points !== "ring" || !before || before.evaluation !== series.evaluation || before.run !== series.run || !u.series[i + 1].show) return;
      u.ctx.save();
      u.ctx.strokeStyle = resolve(series.colour);
      u.ctx.lineWidth = 1.4 * devicePixelRatio;
      series.steps.forEach((step, k) => {
        const other = before.steps.indexOf(step), value = Lanes.position(series.run, page.axis, step);
        if (other < 0 || value === null || value < u.scales.x.min || value > u.scales.x.max) return;
        const x = u.valToPos(value, "x", true), y0 = u.valToPos(before.v[other], "y", true), y1 = u.valToPos(series.v[k], "y", true);
        const gap = 5 * devicePixelRatio * Math.sign(y0 - y1);
        if (Math.abs(y0 - y1) < Math.abs(2 * gap)) return;
        u.ctx.beginPath(); u.ctx.moveTo(x, y0 - gap); u.ctx.lineTo(x, y1 + gap); u.ctx.stroke();
      });
      u.ctx.restore();
    });
  }
  return {specifications, draw, resolve, colours};
})();
