// The timeline: one lane a plane, in causal order, over the axis that the curves share.
"use strict";
const Lanes = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const GAP = 8, RIGHT = 14;
  const gutter = width => (width < 620 ? 62 : 112);
  const compact = value => {
    const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
    for (const [size, unit] of units) if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)} ${unit}`;
    return `${+value.toPrecision(3)}`;
  };
  const rate = value => (value === 0 ? "0" : value < 0.01 || value >= 1e4 ? value.toExponential(1).replace(".0e", "e") : `${+value.toPrecision(2)}`);

  // Width of a text, in letters of middling width.
  const letters = text => [...text].reduce((sum, each) => sum + ("mwMW×→←…".includes(each) ? 1.45 : "fijlrtI.,:;|'()[] ".includes(each) ? 0.55 : 1), 0);

  function node(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) if (value !== undefined) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Where a step lies on an axis: rows of the log, and straight between them.
  function position(run, axis, step) {
    const steps = run.x.steps, values = run.x[axis];
    if (!values || !steps.length) return null;
    let low = 0, high = steps.length - 1;
    if (step <= steps[0]) return values[0];
    if (step >= steps[high]) return values[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    if (values[low] === null || values[high] === null) return null;
    return values[low] + (values[high] - values[low]) * (step - steps[low]) / (steps[high] - steps[low]);
  }

  function stepAt(run, axis, value) {
    const steps = run.x.steps, values = run.x[axis].filter(each => each !== null);
    let low = 0, high = values.length - 1;
    if (high < 1 || value <= values[0]) return steps[0];
    if (value >= values[high]) return steps[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] <= value) low = middle; else high = middle;
    }
    return steps[low] + (steps[high] - steps[low]) * (value - values[low]) / (values[high] - values[low] || 1);
  }

  const valueAt = (samples, step) => {
    let value = samples[0][1];
    for (let i = 0; i < samples.length && samples[i][0] <= step; i++) value = samples[i][1];
    return value;
  };

  class Drawing {
    constructor(run, axis, view, width) {
      Object.assign(this, {run, axis, view, width, left: gutter(width), y: 0});
      this.narrow = width < 620;
      this.right = width - RIGHT;
      this.id = `clip-${Drawing.count = (Drawing.count || 0) + 1}`;
      this.svg = node("svg", {role: "img", "aria-label": `Timeline of ${run.name}: ${this.spoken()}`});
      this.plot = node("g", {"clip-path": `url(#${this.id})`});
      this.edges = this.run.phases.map(phase => [this.x(phase.start), this.x(phase.stop)]);
    }
    spoken() {
      return this.run.phases.map(phase => `${phase.name}, steps ${phase.start} to ${phase.stop}, ${phase.parameters} parameters`).join("; ") + ". Figures stand in the tables below.";
    }
    x(step) {
      const value = position(this.run, this.axis, step);
      const known = value === null ? Math.max(...this.run.x[this.axis].filter(each => each !== null)) : value;
      return this.left + (known - this.view[0]) / (this.view[1] - this.view[0]) * (this.right - this.left);
    }
    title(text) { return node("title", {}, text); }
    box(x0, x1, y, height, fill, title, extra) {
      if (x1 <= x0) return null;
      const made = node("rect", {x: x0, y, width: Math.max(x1 - x0, 0.5), height, fill, ...extra});
      if (title) made.append(this.title(title));
      this.plot.append(made);
      return made;
    }
    // Text that fits between two edges: the first whole one of several, else none; one alone is shortened, as far as that says anything.
    label(x0, x1, y, texts, options = {}) {
      const from = Math.max(x0, this.left), to = Math.min(x1, this.right);
      const room = (to - from - 8) / (options.class ? 8.1 : 7);
      const text = Array.isArray(texts) ? texts.find(each => letters(each) <= room) : texts;
      if (!text || room < Math.min(letters(text), 4)) return;
      let shown = text;
      for (let end = text.length - 1; letters(shown) > room; end--) shown = text.slice(0, end) + "…";
      const at = options.middle ? (from + to) / 2 : options.end ? to - 6 : from + 6;
      const made = node("text", {x: at, y, class: options.class, "text-anchor": options.middle ? "middle" : options.end ? "end" : undefined}, shown);
      if (options.ground) for (const [name, value] of Object.entries({stroke: options.ground, "stroke-width": 4, "paint-order": "stroke"})) made.setAttribute(name, value);
      if (shown !== text) made.append(this.title(text));
      this.plot.append(made);
    }
    lane(name, hint, height) {
      const middle = this.y + height / 2;
      this.svg.append(node("text", {x: 0, y: this.narrow || !hint ? middle + 4 : middle - 3, class: "lane"}, this.narrow && name === "optimizer" ? "optim." : name));
      if (hint && !this.narrow) this.svg.append(node("text", {x: 0, y: middle + 12, class: "hint"}, hint));
    }
    // The phases of a lane that look alike on both sides of a boundary are one segment.
    segments(key) {
      const parts = [];
      this.run.lanes.forEach((lane, i) => {
        const told = key(lane, i), last = parts[parts.length - 1];
        if (last && last.told === told) last.to = i; else parts.push({from: i, to: i, told});
      });
      return parts.map(part => ({...part, x0: this.edges[part.from][0] + 1, x1: this.edges[part.to][1] - 1, lane: this.run.lanes[part.from]}));
    }
    thinLine(samples, y, height, colour, title) {
      const top = Math.max(...samples.map(pair => pair[1])), low = Math.min(0, ...samples.map(pair => pair[1]));
      const at = pair => `${this.x(pair[0]).toFixed(1)},${(y + height - 2 - (height - 4) * (pair[1] - low) / (top - low || 1)).toFixed(1)}`;
      const line = node("polyline", {points: samples.map(at).join(" "), fill: "none", stroke: colour, "stroke-width": 1.2, opacity: 0.55});
      line.append(this.title(title));
      this.plot.append(line);
    }
    values(lane, plane, i, y, height) {
      for (const [name, samples] of Object.entries(lane[plane].values || {})) {
        this.thinLine(this.upTo(samples, i), y, height, "var(--fg)", `${name}: ${rate(samples[0][1])} → ${rate(samples[samples.length - 1][1])}`);
      }
    }
    upTo(samples, i) { return [...samples, [this.run.phases[i].stop, samples[samples.length - 1][1]]]; }

    phases() {
      this.run.phases.forEach((phase, i) => {
        const [x0, x1] = this.edges[i];
        const ground = node("rect", {x: x0, y: 0, width: Math.max(x1 - x0, 0), height: "100%", fill: i % 2 ? "var(--b)" : "var(--a)"});
        ground.append(this.title(`${phase.name}, steps ${phase.start} to ${phase.stop}`));
        this.plot.append(ground);
        this.label(x0, x1, 16, phase.name, {middle: true, class: "phase"});
      });
      this.y = 26;
    }
    task() {
      const height = 22;
      this.lane("task", "", height);
      const parts = this.segments(lane => lane.task.use);
      for (const part of parts) {
        this.box(part.x0, part.x1, this.y, height, "var(--task)", part.told, {rx: 2});
      }
      this.run.lanes.forEach((lane, i) => this.values(lane, "task", i, this.y, height));
      for (const part of parts) this.label(part.x0, part.x1, this.y + 15, part.told, {ground: "var(--task)"});
      this.y += height + GAP;
    }
    data() {
      const height = 46, size = shape => (shape[1] === null ? 1 : shape[1] * (shape[2] || 1));
      this.lane("data", this.run.lanes.some(lane => lane.data.shapes.some(shape => shape[2])) ? "tokens a step" : "rows a step", height);
      const most = Math.max(...this.run.lanes.flatMap(lane => lane.data.shapes.map(size)));
      const names = [...new Set(this.run.lanes.flatMap(lane => Object.keys(lane.data.sources)))];
      this.run.lanes.forEach((lane, i) => {
        const stop = this.run.phases[i].stop;
        lane.data.shapes.forEach((shape, j) => {
          const end = j + 1 < lane.data.shapes.length ? lane.data.shapes[j + 1][0] : stop;
          this.mixture(lane, Math.max(shape[0], this.run.phases[i].start), end, Math.max(5, height * size(shape) / most), this.y + height, names);
        });
        this.values(lane, "data", i, this.y, height - 18); // above the words
        this.dataText(lane, i, height);
      });
      this.y += height + GAP;
    }
    mixture(lane, start, end, height, foot, names) {
      const mix = Object.entries(lane.data.mix);
      const moves = mix.some(([, samples]) => samples.length > 1);
      const cuts = moves ? [...new Set([start, ...mix.flatMap(([, samples]) => samples.map(pair => pair[0])), end])].filter(step => step >= start && step <= end).sort((a, b) => a - b) : [start, end];
      for (let k = 0; k + 1 < cuts.length; k++) {
        const weights = mix.map(([, samples]) => Math.max(0, valueAt(samples, cuts[k])));
        const sum = weights.reduce((a, b) => a + b, 0) || 1;
        let y = foot;
        mix.forEach(([name], j) => {
          const part = height * weights[j] / sum;
          y -= part;
          const first = k === 0 ? 1 : 0, last = k + 2 === cuts.length ? 1 : -0.3;
          if (part > 0.2) this.box(this.x(cuts[k]) + first, this.x(cuts[k + 1]) - last, y, part, `var(--data${["", "2", "3", "4"][names.indexOf(name) % 4]})`, `${name}: ${Math.round(100 * weights[j] / sum)}% of the rows from step ${cuts[k]}`);
        });
      }
    }
    dataText(lane, i, height) {
      const [first, last] = [lane.data.shapes[0], lane.data.shapes[lane.data.shapes.length - 1]];
      const word = shape => (shape[1] === null ? "rows as they come" : shape[2] === null ? `${shape[1]} rows` : `${shape[1]} × ${shape[2]}`);
      const shapes = word(first) === word(last) ? word(first) : `${word(first)} → ${word(last)}`;
      const mix = Object.entries(lane.data.mix).filter(([, samples]) => samples.some(pair => pair[1] > 0));
      this.label(this.edges[i][0], this.edges[i][1], this.y + height - 6, [`${shapes} · ${mix.map(([name]) => name).join(" + ")}`, shapes]);
    }
    model() {
      const most = Math.max(...this.run.lanes.map(lane => lane.model.bars.length));
      const thick = Math.max(3, Math.min(14, Math.floor(190 / most))), tall = most * (thick + 2) + 18;
      this.lane("model", "blocks", tall);
      this.run.lanes.forEach((lane, i) => {
        const [x0, x1] = [this.edges[i][0] + 2, this.edges[i][1] - 2], phase = this.run.phases[i];
        let y = this.y + tall;
        lane.model.bars.forEach((bar, k) => {
          const outer = k === 0 || k === lane.model.bars.length - 1, h = outer ? Math.max(3, thick * 0.5) : thick;
          y -= h + 2;
          this.bar(bar, x0, x1, y, h, i);
        });
        const adapters = Object.entries(lane.model.weight_adapters);
        if (adapters.length) this.box(x1 - 6, x1, y, this.y + tall - y - 2, "var(--c3)", adapters.map(([name, a]) => `${name}: ${a.use} beside ${a.select.join(", ")}`).join("; "), {rx: 2});
        const [some, all] = [compact(phase.trainable), compact(phase.parameters)], names = adapters.map(([name]) => name).join(", ");
        const shares = some === all ? [all] : [`${some} of ${all} trained${names ? ` · ${names}` : ""}`, `${some} of ${all} trained`, `${some} of ${all}`];
        this.label(x0, x1, y - 5, shares, {end: true, class: "right"});
        this.values(lane, "model", i, this.y, tall);
      });
      this.y += tall + GAP;
    }
    bar(bar, x0, x1, y, h, i) {
      const words = {kept: "carried over", copied: `copied from ${bar.origin || "the old one"}`, fresh: "fresh"}, n = bar.tensors;
      const came = n ? `${n.kept} tensors carried over, ${n.copied} copied, ${n.fresh} fresh` : words[bar.from];
      const title = `${bar.label}: ${i ? came : "from the start"}${bar.frozen === "none" ? "" : bar.frozen === "all" ? ", frozen" : ", partly frozen"}`;
      const fill = bar.from === "fresh" ? "var(--bg)" : bar.from === "copied" ? "var(--copy)" : "var(--model)";
      const gate = this.run.lanes[i].model.gate;
      this.box(x0, x1, y, h, gate && bar.from !== "kept" ? `url(#${this.id}-gate)` : fill, title, {rx: 2, ...(bar.from === "fresh" ? {stroke: "var(--model)", "stroke-width": 1.2} : {})});
      if (bar.frozen !== "none") this.box(x0, x1, y, h, `url(#${this.id}-hatch)`, title, {rx: 2, opacity: bar.frozen === "all" ? 1 : 0.5});
      if (bar.origin && h >= 12) this.label(x0, x1, y + h - 2.5, [`${bar.label.split(" ").pop()} ← ${bar.origin}`]);
    }
    // The rates stay below the 16 pixels at the top, where the name stands.
    optimizer() {
      const height = 54, foot = this.y + height, uses = [...new Set(this.run.lanes.map(lane => lane.optimizer.use))];
      this.lane("optimizer", "learning rate", height);
      const rates = this.run.lanes.flatMap(lane => Object.values(lane.optimizer.groups).flatMap(group => Object.entries(group).filter(([key]) => key.endsWith("lr")).map(([, samples]) => samples)));
      const most = Math.max(1e-30, ...rates.flat().map(pair => pair[1]));
      this.run.lanes.forEach((lane, i) => {
        const colour = ["opt", "opt2", "task"][uses.indexOf(lane.optimizer.use) % 3];
        const groups = Object.entries(lane.optimizer.groups).flatMap(([name, values]) => Object.entries(values).filter(([key]) => key.endsWith("lr")).map(([key, samples]) => [`${name} ${key}`, samples]));
        const main = groups.find(([name]) => name === "default lr") || groups[0];
        if (main) {
          const points = this.upTo(main[1], i).map(pair => `${this.x(pair[0]).toFixed(1)},${(foot - (height - 16) * pair[1] / most).toFixed(1)}`);
          const area = node("polygon", {points: `${this.edges[i][0]},${foot} ${points.join(" ")} ${this.edges[i][1]},${foot}`, fill: `var(--${colour})`});
          area.append(this.title(`${main[0]} ${rate(main[1][0][1])} → ${rate(main[1][main[1].length - 1][1])}`));
          this.plot.append(area, node("polyline", {points: points.join(" "), fill: "none", stroke: `var(--${colour === "opt2" ? "opt2" : "opt"}-line)`, "stroke-width": 1.6}));
        }
        groups.filter(group => group !== main).forEach(([name, samples]) => {
          const points = this.upTo(samples, i).map(pair => `${this.x(pair[0]).toFixed(1)},${(foot - (height - 16) * pair[1] / most).toFixed(1)}`);
          const line = node("polyline", {points: points.join(" "), fill: "none", stroke: "var(--opt-line)", "stroke-dasharray": "5 3", "stroke-width": 1.3});
          line.append(this.title(name));
          this.plot.append(line);
        });
        if (lane.optimizer.ema) this.plot.append(node("line", {x1: this.edges[i][0] + 2, x2: this.edges[i][1] - 2, y1: this.y, y2: this.y, stroke: "var(--mute)", "stroke-dasharray": "1 4", "stroke-width": 2}));
      });
      for (const part of this.segments(lane => lane.optimizer.use)) {
        const peak = Math.max(...this.run.lanes.slice(part.from, part.to + 1).flatMap(lane => Object.values((lane.optimizer.groups.default || Object.values(lane.optimizer.groups)[0] || {})).filter((_, k) => k === 0).flat().map(pair => pair[1])));
        this.label(part.x0, part.x1, this.y + 12, `${part.told}${peak > 0 && isFinite(peak) ? `, up to ${rate(peak)}` : ""}`);
      }
      this.y += height + GAP;
    }
    marks() {
      const marks = this.run.marks;
      if (!marks) return;
      const others = [
        ...marks.skipped.slice(0, 500).map(each => [each.step, "×", `step ${each.step} skipped ${each.why}`, "--red"]),
        ...marks.resumes.map(each => [each.step, "↻", `went on at step ${each.step}`, "--ink"]),
        ...marks.rewinds.map(each => [each.step, "↶", `back from step ${each.from}: ${each.why}`, "--red"]),
        ...marks.stops.map(each => [each.step, "■", `stopped: ${each.why}`, "--ink"]),
        ...marks.changes.map(each => [each.step, "✎", `${each.key}: ${each.before} → ${each.after}`, "--ink"]),
      ];
      const saved = marks.checkpoints.map(each => [each.step, each.best ? "★" : "▲", `checkpoint of step ${each.step}${each.best ? ", the best" : ""}`, each.best ? "--ink" : "--mute"]);
      for (const [name, row] of [["saved", saved], ["events", others]]) {
        if (!row.length) continue;
        this.lane(name, "", 16);
        for (const [step, sign, title, colour] of row) {
          const x = this.x(step);
          if (x < this.left - 1 || x > this.right + 1) continue;
          const made = node("text", {x, y: this.y + 12, "text-anchor": "middle", style: `fill:var(${colour})`}, sign);
          made.append(this.title(title));
          this.svg.append(made);
        }
        this.y += 18;
      }
    }
    definitions(height) {
      const defs = node("defs");
      const clip = node("clipPath", {id: this.id});
      clip.append(node("rect", {x: this.left, y: 0, width: this.right - this.left, height}));
      const hatch = node("pattern", {id: `${this.id}-hatch`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)"});
      hatch.append(node("rect", {width: 2.2, height: 5, fill: "var(--bg)", opacity: 0.75}));
      const gate = node("linearGradient", {id: `${this.id}-gate`});
      gate.append(node("stop", {offset: "0%", "stop-color": "var(--copy)", "stop-opacity": 0.25}), node("stop", {offset: "100%", "stop-color": "var(--model)"}));
      defs.append(clip, hatch, gate);
      return defs;
    }
    draw() {
      this.phases();
      if (this.run.lanes.length) {
        this.task(); this.data(); this.model(); this.optimizer();
      }
      this.svg.append(this.plot);
      this.marks();
      this.run.phases.slice(1).forEach(phase => this.plot.append(node("line", {class: "boundary", x1: this.x(phase.start), x2: this.x(phase.start), y1: 0, y2: this.y})));
      this.cursor = node("line", {class: "cursor", y1: 0, y2: this.y, visibility: "hidden"});
      this.plot.append(this.cursor);
      for (const [name, value] of Object.entries({viewBox: `0 0 ${this.width} ${this.y}`, width: this.width, height: this.y})) this.svg.setAttribute(name, value);
      this.svg.prepend(this.definitions(this.y));
      return this;
    }
  }
  // What the looks of a drawing mean, of those that these runs have: a class of the style sheet and words.
  function meanings(runs) {
    const lanes = runs.flatMap(run => run.lanes), bars = lanes.flatMap(lane => lane.model.bars);
    const rates = lane => Object.values(lane.optimizer.groups).flatMap(group => Object.keys(group).filter(key => key.endsWith("lr")));
    const moves = lane => ["task", "data", "model"].some(plane => Object.keys(lane[plane].values).length);
    return [
      ["kept", "a block carried over", bars.some(bar => bar.from !== "kept" || bar.frozen !== "none")],
      ["copied", "copied, or in part", bars.some(bar => bar.from === "copied")],
      ["fresh", "fresh", bars.some(bar => bar.from === "fresh")],
      ["gated", "fades in behind a gate", lanes.some(lane => lane.model.gate)],
      ["frozen", "frozen", bars.some(bar => bar.frozen !== "none")],
      ["adapters", "adapters beside its weights", lanes.some(lane => Object.keys(lane.model.weight_adapters).length)],
      ["moves", "a value that follows time", lanes.some(moves)],
      ["other", "the rate of a further group", lanes.some(lane => rates(lane).length > 1)],
      ["averaged", "averaged weights are kept", lanes.some(lane => lane.optimizer.ema)],
    ].filter(each => each[2]);
  }
  // The drawing as a file of its own, which follows the reader's theme as the page does.
  function picture(svg) {
    const copy = svg.cloneNode(true), [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number), margin = 14;
    copy.querySelector(".cursor").remove();
    const rules = [...document.styleSheets].flatMap(sheet => [...sheet.cssRules]);
    const root = rules.find(rule => rule.selectorText === ":root").style, names = [...root].filter(name => name.startsWith("--"));
    const colours = side => names.map(name => `${name}:${root.getPropertyValue(name).trim().replace(/^light-dark\((.*),\s*(.*)\)$/, side)}`).join(";");
    const texts = rules.filter(rule => (rule.selectorText || "").startsWith("svg ")).map(rule => rule.cssText).join("");
    const style = `:root{${colours("$1")}}@media(prefers-color-scheme:dark){:root{${colours("$2")}}}${texts}`;
    const box = {x: -margin, y: -margin, width: width + 2 * margin, height: height + 2 * margin};
    copy.prepend(node("style", {}, style), node("rect", {...box, rx: 8, fill: "var(--bg)"}));
    copy.setAttribute("viewBox", Object.values(box).join(" "));
    copy.setAttribute("width", box.width);
    copy.setAttribute("height", box.height);
    return new XMLSerializer().serializeToString(copy);
  }
  return {Drawing, meanings, picture, position, stepAt, gutter, RIGHT, compact, rate};
})();
