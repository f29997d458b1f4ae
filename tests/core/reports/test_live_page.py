"""The page while a run trains: news arrives, and nobody without the address gets any."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from shown_runs import Page

from stackwise.errors import UserError
from stackwise.reports.page.live import LivePage


@pytest.fixture
def live(run: Path, tmp_path: Path) -> Iterator[tuple[LivePage, Path]]:
    """A page over a run half of whose log is written."""
    run = Path(shutil.copytree(run, tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    shutil.copy(run / "metrics.jsonl", tmp_path / "whole.jsonl")
    (run / "metrics.jsonl").write_text("".join(lines[:14]) + lines[14][:20])
    with LivePage([run]) as page:
        thread = Thread(target=page.serve)
        thread.start()
        yield page, run
        page.close()
        thread.join()


def refusal(request: Request | str) -> int:
    """The status of an answer that is not a page."""
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    refused.value.close()
    return refused.value.code


def test_news_arrive_and_what_is_known_is_not_sent_again(live: tuple[LivePage, Path], tmp_path: Path):
    page, run = live
    with urlopen(page.address) as answer:
        tag, first = answer.headers["ETag"], Page(answer.read().decode())
    policy = next(a["content"] for t, a in first.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "connect-src 'self'" in policy
    assert refusal(Request(page.address, headers={"If-None-Match": tag})) == 304
    shutil.copy(tmp_path / "whole.jsonl", run / "metrics.jsonl")
    with urlopen(Request(page.address, headers={"If-None-Match": tag})) as answer:
        second = Page(answer.read().decode())
    whole = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    before, after = first.data["runs"][0], second.data["runs"][0]
    assert after["done"] == sum("evaluation" not in line for line in whole) > before["done"] > 0
    assert after["curves"]["loss"]["v"][: before["done"]] == before["curves"]["loss"]["v"]


def test_only_the_whole_address_is_answered_and_only_reading(live: tuple[LivePage, Path]):
    page, _ = live
    root = page.address.rsplit("/", 2)[0]
    assert root.startswith("http://127.0.0.1:")
    for path in ("/", "/x/", f"/{page.address.split('/')[3]}", f"{page.address.removeprefix(root)}../config.yaml"):
        assert refusal(root + path) == 404
    assert refusal(Request(page.address, method="POST", data=b"")) == 501


def test_a_port_that_is_taken_is_said(live: tuple[LivePage, Path]):
    page, run = live
    with pytest.raises(UserError, match="--port"):
        LivePage([run], int(page.address.split(":")[2].split("/")[0]))
