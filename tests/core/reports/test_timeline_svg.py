"""The timeline as a picture of its own, drawn without a browser."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from click.testing import CliRunner

from stackwise.cli import main
from stackwise.reports.record import read_run
from stackwise.reports.timeline_svg import timeline_svg


def test_the_command_writes_a_picture_with_every_phase(run: Path, tmp_path: Path) -> None:
    pages = list(run.glob("*.html"))
    done = CliRunner().invoke(main, ["report", str(run), "--svg", str(tmp_path / "timeline.svg")])
    assert done.exit_code == 0, done.output
    root = ElementTree.fromstring((tmp_path / "timeline.svg").read_text(encoding="utf-8"))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"task", "data", "model", "optimizer", *(phase["name"] for phase in read_run(run).phases)} <= texts
    assert list(run.glob("*.html")) == pages  # a picture is no page


def test_names_add_no_element(run: Path) -> None:
    plan = dict(read_run(run).plan)
    plan["phases"] = [{**phase, "name": "<b>\"'&"} for phase in plan["phases"]]
    root = ElementTree.fromstring(timeline_svg(plan, "</svg><script>"))
    assert not list(root.iter("{http://www.w3.org/2000/svg}b"))
    assert "</svg><script>" in root.attrib["aria-label"]


def test_it_is_of_one_run_and_no_page(run: Path, tmp_path: Path) -> None:
    picture = str(tmp_path / "timeline.svg")
    for more in ([str(run)], ["--live"], ["-o", str(tmp_path / "page.html")]):
        assert CliRunner().invoke(main, ["report", str(run), "--svg", picture, *more]).exit_code == 2
    assert not (tmp_path / "timeline.svg").exists()
