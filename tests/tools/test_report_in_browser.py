"""The page of tools/report.py in headless Chromium, as a person uses it: by keyboard, by pointer, on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.tools import runs
from tools.report import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("vl_convert", reason="vl-convert-python is not installed; the extra report brings it")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; the extra dev brings it")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)")

LONG = "a-name-that-is-longer-than-any-phone-is-wide-and-has-nowhere-to-be-broken" * 2 + ".onnx@openvino@bf16"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four pictures and all kinds of runs, with names of all lengths."""
    folder = tmp_path_factory.mktemp("report")
    errors = [{"name": f"layer {i}", "error": 10.0 ** (i - 9), "limit": 1e-4, "within": i < 5} for i in range(7)]
    layers = {"failure": None, "picture": "a", "first": errors[5], "before": "layer 4", "layers": errors}
    values = (
        runs.evaluation(folder, ("astronaut", "coffee", "chelsea", "astronaut 2"), side=700),
        runs.parity(runs.compared("x2.onnx", layers=layers), runs.compared(LONG, failure="not " * 40)),
        runs.latency(
            runs.timing("sst-light-x2", 3179.4, layers=runs.layers(1900, 520, 610, 60, 50, 9)),
            runs.timing("x2.onnx", 970.8, layers=runs.layers(560, 140, 230, 12, 8, 0), gpu_memory=2**31),
            runs.timing(LONG, 123456.0, layers=runs.layers(1, 1, 1, 1, 1, 1)),
        ),
    )
    files = [runs.write(folder / f"run{i}.json", value) for i, value in enumerate(values)]
    result = CliRunner().invoke(main, [*files, "-o", str(folder / "report.html")])
    assert result.exit_code == 0, result.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Chromium's sandbox does not start for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


class Opened:
    """A page, without network, and what went wrong on it or was asked for from outside of it."""

    def __init__(self, browser: Browser, report: Path, width: int = 1280, scheme: str = "light"):
        options: dict[str, Any] = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme, "offline": True}
        self.page: Page = browser.new_page(**options)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, report))
        self.page.goto(report.as_uri())

    def _asked(self, url: str, report: Path) -> None:
        if not url.startswith("data:") and url != report.as_uri():
            self.wrong.append(url)

    def shown(self) -> dict[str, str]:
        """Of the first picture: which layer is at which side, and the part of the left one that is cut off."""
        look = """() => {
            const of = (side) => document.querySelector(`.stage .layer.${side}`);
            return {left: of("left").alt, right: of("right").alt, cut: getComputedStyle(of("left")).clipPath};
        }"""
        return self.page.evaluate(look)


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    made = Opened(browser, report)
    yield made
    assert made.wrong == [], "errors on the console, or requests to somewhere"
    made.page.close()


def test_sliders_move_by_keyboard(opened: Opened) -> None:
    slider = opened.page.get_by_role("slider").first
    before = opened.shown()
    slider.focus()
    for _ in range(7):
        opened.page.keyboard.press("ArrowRight")
    assert slider.input_value() == "57"
    assert opened.shown()["cut"] != before["cut"]
    assert slider.get_attribute("aria-valuetext") == "57 % bicubic, 43 % sst-light-x2 = x2.onnx"
    opened.page.keyboard.press("Home")
    assert slider.input_value() == "0"


def test_sliders_move_by_pointer_to_where_it_is(opened: Opened) -> None:
    slider = opened.page.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + box["width"] / 2, y)
    opened.page.mouse.down()
    for share in (0.5, 0.3, 0.2):
        opened.page.mouse.move(box["x"] + share * box["width"], y)
        assert abs(int(slider.input_value()) - 100 * share) <= 1
    opened.page.mouse.up()
    at = opened.page.locator(".stage").first.evaluate("stage => stage.style.getPropertyValue('--at')")
    assert at == f"{slider.input_value()}%"


def test_any_two_pictures_are_put_side_by_side(opened: Opened) -> None:
    assert opened.shown()["left"].endswith(": bicubic")
    right = opened.page.get_by_role("combobox", name="picture at the right").first
    right.select_option(label="original")
    assert opened.shown()["right"] == "astronaut.png, x2: original"
    opened.page.get_by_role("combobox", name="picture at the left").first.select_option(label="original")
    assert opened.shown() == {
        "left": "astronaut.png, x2: original",
        "right": "astronaut.png, x2: original",
        "cut": "none",
    }


def test_controls_and_pictures_have_names(opened: Opened) -> None:
    unnamed = """() => [...document.querySelectorAll("img, input, select, [role=img]")].filter(
        (of) => !(of.alt || of.getAttribute("aria-label"))).map((of) => of.outerHTML.slice(0, 80))"""
    assert opened.page.evaluate(unnamed) == []
    assert opened.page.get_by_role("slider").count() == 4
    assert opened.page.get_by_role("combobox").count() == 8
    assert opened.page.get_by_role("heading", level=1).count() == 1


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const light = (colour) => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const of = getComputedStyle(document.documentElement);
    const ratio = (a, b) => {
        const [low, high] = [light(of.getPropertyValue(a)), light(of.getPropertyValue(b))].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    const text = ["--ink", "--muted", "--good", "--bad"].flatMap((ink) => [ratio(ink, "--page"), ratio(ink, "--card")]);
    const kinds = [0, 1, 2, 3, 4, 5].map((i) => `--kind-${i}`);
    const marks = ["--bar", "--focus", ...kinds].map((of) => ratio(of, "--page"));
    return {text: Math.min(...text), marks: Math.min(...marks), page: light(of.getPropertyValue("--page"))};
}"""
"""By WCAG 2: least contrasts of text and of what charts are drawn in, and how light the page is."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_scrolls_sideways_and_all_can_be_read(browser: Browser, report: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, report, width, scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """() => [...document.querySelectorAll("body *")].filter(
        (of) => of.getClientRects().length && !of.closest("thead") && of.getBoundingClientRect().right > innerWidth + 1
    ).map((of) => of.outerHTML.slice(0, 80))"""
    assert opened.page.evaluate(beyond) == []
    contrast = opened.page.evaluate(CONTRAST)
    assert contrast["text"] >= 4.5
    assert contrast["marks"] >= 2
    assert (contrast["page"] > 0.5) == (scheme == "light")
    assert opened.wrong == []
    opened.page.close()


def test_without_scripts_the_page_still_shows_both_pictures(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".stage").first.locator(".layer.left, .layer.right").count() == 2
    assert page.locator(".stage .layer.right").first.is_visible()
    context.close()
