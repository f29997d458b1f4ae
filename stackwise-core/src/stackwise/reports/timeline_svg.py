"""The timeline of a run or a plan as a picture of its own (SVG), light and dark as its reader prefers.

What `page/lanes.js` draws for a reader who moves and zooms, drawn once, over steps: what changes in one of the two changes in both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape, quoteattr

LEFT, RIGHT, GAP, MARGIN = 112, 14, 8, 14
_NARROW, _WIDE = 7, 8.1
"""Pixels of a letter, and of a bold one."""


def timeline_svg(plan: Mapping[str, Any], name: str, width: int = 989) -> str:
    """The picture.

    Args:
        plan: as `plan.json` holds it.
        name: of the run, for who listens to the picture.
        width: in pixels, without its margin.
    """
    return _Picture(plan, width).text(name)


class _Picture:
    """Grows downwards, a lane at a time."""

    def __init__(self, plan: Mapping[str, Any], width: int) -> None:
        self._phases, self._lanes = plan["phases"], plan["lanes"]
        self._width, self._last = width, max(int(plan["steps"]), 1)
        self._y = 0.0
        self._behind: list[str] = []
        """Names of lanes, which are not cut off at the edges."""
        self._plot: list[str] = []

    def text(self, name: str) -> str:
        """The whole document."""
        self._head()
        for draw in (self._task, self._data, self._model, self._optimizer):
            draw()
        for phase in self._phases[1:]:
            x = self._x(phase["start"])
            self._plot.append(_tag("line", {"class": "boundary", "x1": x, "x2": x, "y1": 0, "y2": self._y}))
        spoken = "; ".join(f"{p['name']}, steps {p['start']} to {p['stop']}, {p['parameters']} parameters" for p in self._phases)
        box = (-MARGIN, -MARGIN, self._width + 2 * MARGIN, self._y + 2 * MARGIN)
        attributes = {
            "xmlns": "http://www.w3.org/2000/svg",
            "role": "img",
            "aria-label": f"Timeline of {name}: {spoken}.",
            "viewBox": " ".join(map(_number, box)),
            "width": box[2],
            "height": box[3],
        }
        ground = _tag("rect", {"x": box[0], "y": box[1], "width": box[2], "height": box[3], "rx": 8, "fill": "var(--bg)"})
        plot = _tag("g", {"clip-path": "url(#clip)"}, "".join(self._plot), raw=True)
        inner = [_tag("style", {}, _style(), raw=True), ground, self._definitions(), *self._behind, plot]
        return _tag("svg", attributes, "".join(inner), raw=True) + "\n"

    def _x(self, step: float) -> float:
        return LEFT + step / self._last * (self._width - RIGHT - LEFT)

    def _edges(self, i: int) -> tuple[float, float]:
        return self._x(self._phases[i]["start"]), self._x(self._phases[i]["stop"])

    # -- lanes ----------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        for i, phase in enumerate(self._phases):
            x0, x1 = self._edges(i)
            ground = {"x": x0, "y": 0, "width": max(x1 - x0, 0), "height": "100%", "fill": f"var(--{'b' if i % 2 else 'a'})"}
            title = _title(f"{phase['name']}, steps {phase['start']} to {phase['stop']}")
            self._plot.append(_tag("rect", ground, title, raw=True))
            self._label(x0, x1, 16, [phase["name"]], anchor="middle", kind="phase")
        self._y = 26

    def _task(self) -> None:
        height = 22
        self._lane("task", "", height)
        for x0, x1, use, _ in self._segments("task"):
            self._box(x0, x1, self._y, height, "var(--task)", use, rx=2)
        self._values("task", height)
        for x0, x1, use, _ in self._segments("task"):
            self._label(x0, x1, self._y + 15, [use], ground="var(--task)")
        self._y += height + GAP

    def _data(self) -> None:
        height = 46
        tokens = any(shape[2] for lane in self._lanes for shape in lane["data"]["shapes"])
        self._lane("data", "tokens a step" if tokens else "rows a step", height)
        most = max(_size(shape) for lane in self._lanes for shape in lane["data"]["shapes"])
        names = list(dict.fromkeys(name for lane in self._lanes for name in lane["data"]["sources"]))
        for i, lane in enumerate(self._lanes):
            shapes = lane["data"]["shapes"]
            stops = [*(shape[0] for shape in shapes[1:]), self._phases[i]["stop"]]
            for shape, stop in zip(shapes, stops, strict=True):
                start = max(shape[0], self._phases[i]["start"])
                self._mixture(lane["data"]["mix"], (start, stop), max(5, height * _size(shape) / most), self._y + height, names)
        self._values("data", height - 18)  # above the words
        for i, lane in enumerate(self._lanes):
            self._label(*self._edges(i), self._y + height - 6, _data_words(lane["data"]))
        self._y += height + GAP

    def _mixture(self, mix: Mapping[str, Any], steps: tuple[int, int], height: float, foot: float, names: Sequence[str]) -> None:
        """The sources above one another, by their shares, over a stretch of steps."""
        start, end = steps
        moves = any(len(samples) > 1 for samples in mix.values())
        knots = {step for samples in mix.values() for step, _ in samples if start <= step <= end} if moves else set()
        cuts = sorted({start, end, *knots})
        for k, (cut, after) in enumerate(itertools.pairwise(cuts)):
            weights = {name: max(0.0, _value_at(samples, cut)) for name, samples in mix.items()}
            whole, y = sum(weights.values()) or 1.0, foot
            for name, weight in weights.items():
                part = height * weight / whole
                y -= part
                if part > 0.2:
                    x0, x1 = self._x(cut) + (k == 0), self._x(after) - (1 if k + 2 == len(cuts) else -0.3)
                    colour = f"var(--data{['', '2', '3', '4'][names.index(name) % 4]})"
                    self._box(x0, x1, y, part, colour, f"{name}: {100 * weight / whole:.0f}% of the rows from step {cut}")

    def _model(self) -> None:
        most = max(len(lane["model"]["bars"]) for lane in self._lanes)
        thick = max(3, min(14, 190 // most))
        tall = most * (thick + 2) + 18
        self._lane("model", "blocks", tall)
        for i, lane in enumerate(self._lanes):
            x0, x1 = (edge + inset for edge, inset in zip(self._edges(i), (2, -2), strict=True))
            bars, y = lane["model"]["bars"], self._y + tall
            for k, bar in enumerate(bars):
                h = max(3, thick * 0.5) if k in (0, len(bars) - 1) else thick
                y -= h + 2
                self._bar(bar, (x0, x1), y, h, i)
            if adapters := lane["model"]["weight_adapters"]:
                title = "; ".join(f"{name}: {a['use']} beside {', '.join(a['select'])}" for name, a in adapters.items())
                self._box(x1 - 6, x1, y, self._y + tall - y - 2, "var(--c3)", title, rx=2)
            self._label(x0, x1, y - 5, _share_words(self._phases[i], adapters), anchor="end", kind="right")
        self._values("model", tall)
        self._y += tall + GAP

    def _bar(self, bar: Mapping[str, Any], edges: tuple[float, float], y: float, height: float, i: int) -> None:
        words = {"kept": "carried over", "copied": f"copied from {bar.get('origin') or 'the old one'}", "fresh": "fresh"}
        frozen, n = {"none": "", "all": ", frozen"}.get(bar["frozen"], ", partly frozen"), bar.get("tensors")
        came = f"{n['kept']} tensors carried over, {n['copied']} copied, {n['fresh']} fresh" if n else words[bar["from"]]
        title = f"{bar['label']}: {came if i else 'from the start'}{frozen}"
        fill = {"fresh": "var(--bg)", "copied": "var(--copy)"}.get(bar["from"], "var(--model)")
        fill = "url(#gate)" if self._lanes[i]["model"]["gate"] and bar["from"] != "kept" else fill
        line: dict[str, Any] = {"stroke": "var(--model)", "stroke-width": 1.2} if bar["from"] == "fresh" else {}
        self._box(*edges, y, height, fill, title, rx=2, **line)
        if bar["frozen"] != "none":
            self._box(*edges, y, height, "url(#hatch)", title, rx=2, opacity=1 if bar["frozen"] == "all" else 0.5)
        if bar.get("origin") and height >= 12:
            self._label(*edges, y + height - 2.5, [f"{bar['label'].split(' ')[-1]} ← {bar['origin']}"])

    def _optimizer(self) -> None:
        """The rates stay below the 16 pixels at the top, where the name stands."""
        height = 54
        foot, uses = self._y + height, list(dict.fromkeys(lane["optimizer"]["use"] for lane in self._lanes))
        self._lane("optimizer", "learning rate", height)
        most = max([1e-30, *(value for lane in self._lanes for samples in _rates(lane).values() for _, value in samples)])

        def points(samples: Sequence[Sequence[float]], i: int) -> str:
            whole = [*samples, (self._phases[i]["stop"], samples[-1][1])]
            return " ".join(f"{self._x(step):.1f},{foot - (height - 16) * value / most:.1f}" for step, value in whole)

        for i, lane in enumerate(self._lanes):
            colour, rates, (x0, x1) = ("opt", "opt2", "task")[uses.index(lane["optimizer"]["use"]) % 3], _rates(lane), self._edges(i)
            main = "default lr" if "default lr" in rates else next(iter(rates), None)
            if main is not None:
                line = points(rates[main], i)
                area = f"{_number(x0)},{_number(foot)} {line} {_number(x1)},{_number(foot)}"
                self._plot.append(
                    _tag("polygon", {"points": area, "fill": f"var(--{colour})"}, _title(f"{main} {_ends(rates[main])}"), raw=True)
                )
                stroke = f"var(--{'opt2' if colour == 'opt2' else 'opt'}-line)"
                self._plot.append(_tag("polyline", {"points": line, "fill": "none", "stroke": stroke, "stroke-width": 1.6}))
            for name, samples in rates.items():
                if name != main:
                    dashed = {"fill": "none", "stroke": "var(--opt-line)", "stroke-dasharray": "5 3", "stroke-width": 1.3}
                    self._plot.append(_tag("polyline", {"points": points(samples, i), **dashed}, _title(name), raw=True))
            if lane["optimizer"]["ema"]:
                dots = {"stroke": "var(--mute)", "stroke-dasharray": "1 4", "stroke-width": 2}
                self._plot.append(_tag("line", {"x1": x0 + 2, "x2": x1 - 2, "y1": self._y, "y2": self._y, **dots}))
        for x0, x1, use, lanes in self._segments("optimizer"):
            peak = max((value for lane in lanes for _, value in next(iter(_rates(lane).values()), ())), default=0.0)
            self._label(x0, x1, self._y + 12, [f"{use}{f', up to {_rate(peak)}' if peak > 0 else ''}"])
        self._y += height + GAP

    # -- what lanes are made of -----------------------------------------------------------------------------------

    def _segments(self, plane: str) -> list[tuple[float, float, str, list[Mapping[str, Any]]]]:
        """Edges, component and lanes of neighbouring phases with the same component."""
        parts: list[list[int]] = []
        for i, lane in enumerate(self._lanes):
            if parts and self._lanes[parts[-1][0]][plane]["use"] == lane[plane]["use"]:
                parts[-1].append(i)
            else:
                parts.append([i])
        return [
            (self._edges(p[0])[0] + 1, self._edges(p[-1])[1] - 1, self._lanes[p[0]][plane]["use"], [self._lanes[i] for i in p])
            for p in parts
        ]

    def _lane(self, name: str, hint: str, height: float) -> None:
        middle = self._y + height / 2
        self._behind.append(_tag("text", {"x": 0, "y": middle - 3 if hint else middle + 4, "class": "lane"}, name))
        if hint:
            self._behind.append(_tag("text", {"x": 0, "y": middle + 12, "class": "hint"}, hint))

    def _values(self, plane: str, height: float) -> None:
        """Thin lines of the options that follow time."""
        for i, lane in enumerate(self._lanes):
            for name, samples in (lane[plane].get("values") or {}).items():
                whole = [*samples, (self._phases[i]["stop"], samples[-1][1])]
                top, low = max(value for _, value in whole), min(0.0, *(value for _, value in whole))
                line = [(self._x(s), self._y + height - 2 - (height - 4) * (v - low) / ((top - low) or 1)) for s, v in whole]
                look = {"fill": "none", "stroke": "var(--fg)", "stroke-width": 1.2, "opacity": 0.55}
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
                self._plot.append(_tag("polyline", {"points": points, **look}, _title(f"{name}: {_ends(samples)}"), raw=True))

    def _box(self, x0: float, x1: float, y: float, height: float, fill: str, title: str, **more: Any) -> None:
        if x1 > x0:
            attributes = {"x": x0, "y": y, "width": max(x1 - x0, 0.5), "height": height, "fill": fill, **more}
            self._plot.append(_tag("rect", attributes, _title(title), raw=True))

    def _label(
        self,
        x0: float,
        x1: float,
        y: float,
        texts: Sequence[str],
        *,
        anchor: str = "start",
        kind: str = "",
        ground: str = "",
    ) -> None:
        """The first of the texts that fits between two edges; one alone is shortened, as far as that says anything.

        Args:
            ground: its colour around the letters, where a line may cross them.
        """
        room = (x1 - x0 - 8) / (_WIDE if kind else _NARROW)
        text = texts[0] if len(texts) == 1 else next((each for each in texts if _letters(each) <= room), "")
        if not text or room < min(_letters(text), 4):
            return
        whole, end = text, len(text)
        while _letters(text) > room:
            end -= 1
            text = f"{whole[:end]}…"
        attributes: dict[str, Any] = {"x": {"start": x0 + 6, "middle": (x0 + x1) / 2, "end": x1 - 6}[anchor], "y": y}
        attributes |= {"class": kind} if kind else {}
        attributes |= {} if anchor == "start" else {"text-anchor": anchor}
        attributes |= {"stroke": ground, "stroke-width": 4, "paint-order": "stroke"} if ground else {}
        self._plot.append(_tag("text", attributes, f"{escape(text)}{'' if text == whole else _title(whole)}", raw=True))

    def _definitions(self) -> str:
        clip = _tag("rect", {"x": LEFT, "y": 0, "width": self._width - RIGHT - LEFT, "height": self._y})
        hatch = {"id": "hatch", "width": 5, "height": 5, "patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
        stripe = _tag("rect", {"width": 2.2, "height": 5, "fill": "var(--bg)", "opacity": 0.75})
        stops = _tag("stop", {"offset": "0%", "stop-color": "var(--copy)", "stop-opacity": 0.25})
        stops += _tag("stop", {"offset": "100%", "stop-color": "var(--model)"})
        parts = [
            _tag("clipPath", {"id": "clip"}, clip, raw=True),
            _tag("pattern", hatch, stripe, raw=True),
            _tag("linearGradient", {"id": "gate"}, stops, raw=True),
        ]
        return _tag("defs", {}, "".join(parts), raw=True)


def _letters(text: str) -> float:
    """Width of a text, in letters of middling width."""
    return sum(1.45 if each in "mwMW×→←…" else 0.55 if each in "fijlrtI.,:;|'()[] " else 1 for each in text)


def _tag(name: str, attributes: Mapping[str, Any], inner: str = "", *, raw: bool = False) -> str:
    words = "".join(f" {key}={quoteattr(value if isinstance(value, str) else _number(value))}" for key, value in attributes.items())
    return f"<{name}{words}>{inner if raw else escape(inner)}</{name}>" if inner else f"<{name}{words}/>"


def _title(text: str) -> str:
    return _tag("title", {}, text)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _style() -> str:
    """The page's own colours, light and, where the reader prefers it, dark; and its looks of text."""
    sheet = files("stackwise.reports.page").joinpath("page.css").read_text(encoding="utf-8")
    colours = re.findall(r"(--[\w-]+): light-dark\((#\w+), (#\w+)\)", sheet)
    sides = (";".join(f"{name}:{pair[side]}" for name, *pair in colours) for side in (0, 1))
    light, dark = sides
    texts = "".join(re.findall(r"^svg [^\n]+", sheet, re.MULTILINE))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{texts}"


def _size(shape: Sequence[int | None]) -> int:
    return 1 if shape[1] is None else shape[1] * (shape[2] or 1)


def _value_at(samples: Sequence[Sequence[float]], step: int) -> float:
    return next((value for at, value in reversed(samples) if at <= step), samples[0][1])


def _rates(lane: Mapping[str, Any]) -> dict[str, Sequence[Sequence[float]]]:
    """Learning rates by group and key."""
    groups = lane["optimizer"]["groups"].items()
    return {f"{name} {key}": samples for name, values in groups for key, samples in values.items() if key.endswith("lr")}


def _rate(value: float) -> str:
    if value == 0:
        return "0"
    if not 0.01 <= value < 1e4:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power):+d}"
    return f"{value:.2g}"


def _ends(samples: Sequence[Sequence[float]]) -> str:
    return f"{_rate(samples[0][1])} → {_rate(samples[-1][1])}"


def _compact(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{float(f'{value / size:.3g}'):g} {unit}"
    return f"{value:.3g}"


def _data_words(data: Mapping[str, Any]) -> list[str]:
    """Shapes and sources of a phase, and the shapes alone."""

    def word(shape: Sequence[int | None]) -> str:
        return "rows as they come" if shape[1] is None else f"{shape[1]} rows" if shape[2] is None else f"{shape[1]} × {shape[2]}"

    first, last = word(data["shapes"][0]), word(data["shapes"][-1])
    shapes = first if first == last else f"{first} → {last}"
    names: Iterable[str] = (name for name, samples in data["mix"].items() if any(value > 0 for _, value in samples))
    return [f"{shapes} · {' + '.join(names)}", shapes]


def _share_words(phase: Mapping[str, Any], adapters: Iterable[str]) -> list[str]:
    """How many parameters of how many are trained, shorter and shorter."""
    some, whole, names = _compact(phase["trainable"]), _compact(phase["parameters"]), ", ".join(adapters)
    if some == whole:
        return [whole]
    return [f"{some} of {whole} trained{f' · {names}' if names else ''}", f"{some} of {whole} trained", f"{some} of {whole}"]
