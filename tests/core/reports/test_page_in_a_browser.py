"""The page in a real browser: both widths, both themes, zoom, axes, hover, and nothing in the console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest
from shown_runs import HOSTILE, make_hostile, make_run

from stackwise.reports.page.live import LivePage
from stackwise.reports.page.render import render_page
from stackwise.reports.record import read_run
from stackwise.reports.timeline_svg import timeline_svg

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
pytestmark = [
    pytest.mark.rare,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the path"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in [*FLAGS.split(), "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shown")
    page = folder / "page.html"
    page.write_text(render_page([read_run(make_run(folder))]), encoding="utf-8")
    return page.as_uri()


def open_page(browser: Any, address: str, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(address)


def window(browser: Any) -> list[float]:
    """Ends of the axis that the first tick labels of the timeline's first chart stand on, from its readable state."""
    return [float(part) for part in browser.find_element("id", "charts").get_attribute("data-view").split()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1600])
def test_it_fits_draws_and_complains_of_nothing(browser: Any, address: str, width: int, scheme: str, tmp_path: Path):
    browser.get_log("browser"), browser.get_log("performance")
    open_page(browser, address, width, scheme)
    assert browser.find_element("tag name", "html").get_attribute("data-ready") == "yes"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(browser.find_elements("css selector", "#charts canvas")) >= 4
    assert len(browser.find_elements("css selector", "#timelines svg rect")) > 10
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(", "))) > 384) == (scheme == "light")
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('main *, svg text')].filter(e => e.textContent.trim() && !e.children.length)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert all('"url":"file:' in message for message in asked) and len(asked) == 1


def test_a_window_made_narrower_never_scrolls_sideways(browser: Any, address: str):
    """Charts are drawn anew a moment later; until then they are not wider than the page."""
    open_page(browser, address, 900, "light")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 380, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 380


def test_axis_zoom_and_theme_work_by_keyboard_and_mouse(browser: Any, address: str):
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, address, 1200, "light")
    assert window(browser) == [0, 24]
    tokens = browser.find_element("css selector", "input[value=tokens]")
    tokens.send_keys(Keys.SPACE)
    assert window(browser) == [0, 192]
    browser.find_element("css selector", "[data-zoom=in]").send_keys(Keys.ENTER)
    assert window(browser) == pytest.approx([48, 144])
    browser.find_element("css selector", "[data-zoom=right]").send_keys(Keys.ENTER)
    assert window(browser) == pytest.approx([96, 192])
    browser.find_element("css selector", "[data-zoom=all]").send_keys(Keys.ENTER)
    assert window(browser) == [0, 192]

    plot = browser.find_element("css selector", "#charts .u-over")
    width = plot.size["width"]
    ActionChains(browser).move_to_element_with_offset(plot, -width // 4, 0).click_and_hold().move_by_offset(
        width // 2, 0
    ).release().perform()
    low, high = window(browser)
    assert (low, high) == (pytest.approx(48, abs=2), pytest.approx(144, abs=2))
    ActionChains(browser).move_to_element(plot).perform()
    assert browser.find_element("id", "readout").text.startswith("step 12 · grown")
    assert browser.find_element("css selector", ".chart figcaption .key span").text
    ActionChains(browser).double_click(plot).perform()
    assert window(browser) == [0, 192]

    browser.find_element("css selector", "#theme option[value=dark]").click()
    assert browser.execute_script("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    key = browser.find_element("css selector", ".key")
    key.send_keys(Keys.ENTER)
    assert key.get_attribute("aria-pressed") == "false"
    assert browser.get_log("browser") == []


def test_names_that_look_like_elements_are_text(browser: Any, address: str, run: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text(render_page([read_run(make_hostile(run, tmp_path))]), encoding="utf-8")
    count = "return Object.fromEntries(['script', 'img', 'b', 'svg', 'button'].map(each => [each, document.querySelectorAll(each).length]))"
    browser.get_log("browser")
    open_page(browser, address, 1200, "light")
    usual = browser.execute_script(count)
    open_page(browser, page.as_uri(), 1200, "light")
    assert browser.find_element("tag name", "html").get_attribute("data-ready") == "yes"
    assert browser.execute_script(count) == usual
    assert HOSTILE in browser.execute_script("return [...document.querySelectorAll('svg title')].map(each => each.textContent).join(' ')")
    assert browser.get_log("browser") == []


def test_it_prints_whole_and_light(browser: Any, address: str):
    """What is folded is open on paper, whatever the theme; the page then goes on as it was."""
    open_page(browser, address, 1200, "dark")
    state = "[...document.querySelectorAll('details')].filter(each => !each.open).length, getComputedStyle(document.body).colorScheme"
    browser.execute_script(f"addEventListener('beforeprint', () => {{ window.printed = [{state}]; }});")
    assert browser.execute_script(f"return [{state}]")[1] == "light dark"
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert browser.execute_script("return window.printed") == [0, "light"]
    assert browser.execute_script(f"return [{state}]")[1] == "light dark"
    assert window(browser) == [0, 24]


def test_the_timeline_is_a_picture_of_its_own_in_both_themes(browser: Any, address: str, tmp_path: Path):
    """Its file draws without the page: no reference to it, colours of both themes, the same texts."""
    open_page(browser, address, 1000, "light")
    picture = browser.execute_script("return Lanes.picture(document.querySelector('#timelines svg'))")
    root = ElementTree.fromstring(picture)
    shown = browser.execute_script("return [...document.querySelectorAll('#timelines svg text')].map(each => each.textContent)")
    assert ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")] == shown
    assert "light-dark" not in picture and "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    (tmp_path / "timeline.svg").write_text(picture, encoding="utf-8")
    for scheme in ("light", "dark"):
        open_page(browser, (tmp_path / "timeline.svg").as_uri(), 1000, scheme)
        fill = browser.execute_script("return getComputedStyle(document.querySelector('rect')).fill")
        assert (sum(map(int, fill[4:-1].split(", "))) > 384) == (scheme == "light")
    assert browser.get_log("browser") == []


def test_news_of_a_run_that_trains_arrive_without_a_reload(browser: Any, run: Path, tmp_path: Path):
    """Axis and window stay as the reader has set them."""
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    grows = Path(shutil.copytree(run, tmp_path / "run"))
    lines = (grows / "metrics.jsonl").read_text().splitlines(keepends=True)
    (grows / "metrics.jsonl").write_text("".join(lines[:14]))
    with LivePage([grows]) as live:
        thread = Thread(target=live.serve)
        thread.start()
        try:
            open_page(browser, live.address, 1200, "light")
            browser.get_log("browser")
            browser.find_element("css selector", "input[value=tokens]").send_keys(Keys.SPACE)
            browser.find_element("css selector", "[data-zoom=in]").send_keys(Keys.ENTER)
            before, text = window(browser), browser.find_element("css selector", "header .sub").text
            browser.execute_script("window.mark = 'the same page'")
            (grows / "metrics.jsonl").write_text("".join(lines))
            WebDriverWait(browser, 20).until(
                lambda b: "24 of 24 steps" in b.execute_script("return document.querySelector('header .sub').innerText")
            )
            assert "24 of 24 steps" not in text and browser.execute_script("return window.mark") == "the same page"
            assert window(browser) == before
            assert browser.get_log("browser") == []
        finally:
            live.close()
            thread.join()


def drawn(picture: str) -> list[tuple[object, ...]]:
    """What a picture shows, without order: boxes, lines and texts, by place to half a pixel."""
    shown: list[tuple[object, ...]] = []
    for element in ElementTree.fromstring(picture).iter():
        tag, get = element.tag.rpartition("}")[2], element.get
        title = next((inner.text for inner in element if inner.tag.endswith("title")), "")
        if tag == "rect" and get("rx") != "8":
            numbers = tuple(round(2 * float(get(key, "0"))) for key in ("x", "y", "width"))
            fill = get("fill", "").partition("#")[0]
            shown.append((tag, *numbers, fill, title))
        elif tag == "text":
            shown.append((tag, round(2 * float(get("x", "0"))), round(2 * float(get("y", "0"))), element.text))
        elif tag in ("polyline", "polygon"):
            points = [round(2 * float(part)) for part in get("points", "").replace(",", " ").split()]
            shown.append((tag, *points, get("stroke"), title))
    return sorted(shown, key=lambda each: (str([p for p in each if not isinstance(p, int)]), [p for p in each if isinstance(p, int)]))


def test_the_picture_without_a_browser_is_that_of_the_page(browser: Any, address: str, run: Path):
    open_page(browser, address, 1600, "light")
    record = read_run(run)
    of_page = browser.execute_script(
        "const run = JSON.parse(document.querySelector('script[type=\"application/json\"]').textContent).runs[0];"
        f"run.name = '{record.name}'; run.marks = null;"
        "return Lanes.picture(new Lanes.Drawing(run, 'steps', [0, run.steps], 989).draw().svg)"
    )
    assert len(drawn(of_page)) > 30
    ours, theirs = drawn(timeline_svg(record.plan, record.name)), drawn(of_page)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert [each for each in one if not isinstance(each, int)] == [each for each in other if not isinstance(each, int)]
        assert all(abs(a - b) <= 1 for a, b in zip(one, other, strict=True) if isinstance(a, int) and isinstance(b, int))
