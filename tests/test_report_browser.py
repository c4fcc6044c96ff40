"""The pages in headless Chromium: nothing breaks, nothing is loaded, everything can be reached, read and heard.

Needs chromium and chromedriver (`apt-get install chromium chromium-driver`); .ci/run installs them.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from reported import EVIL, EVILS, Net, result_of, rows_of
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import prunus

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
WIDTHS = (390, 1440)
THEMES = ("light", "dark")
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
CHARTS = {"result": 3, "zeros": 3, "evil": 3, "scan": 0, "measure": 1}


def found(program: str) -> str:
    path = shutil.which(program)
    assert path, f"{program} is not installed; apt-get install chromium chromium-driver"
    return path


def axe() -> str:
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None, "axe-core is missing; pip install --no-deps axe-playwright-python"
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> address of a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    cut, zeros = result_of(Net()), result_of(Net(), prunus.Element())
    evil = result_of(type(EVIL, (Net,), {})(tuple(name.replace(".", "·") for name in EVILS)))
    made = {
        "result": prunus.report(cut, folder / "result.html", rows=rows_of(cut)),
        "zeros": prunus.report(zeros, folder / "zeros.html"),
        "evil": prunus.report(evil, folder / "evil.html", rows=rows_of(evil, EVILS), command=EVIL),
        "scan": prunus.report(cut.plan.groups, folder / "scan.html"),
        "measure": prunus.report({"dense": cut.before, EVIL: cut.after}, folder / "measure.html"),
    }
    return {name: path.as_uri() for name, path in made.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = found("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found("chromedriver")))
    yield driver
    driver.quit()


def look(browser: webdriver.Chrome, address: str, width: int = 1440, theme: str = "light") -> None:
    """Open a page at a width and in the system's theme, and wait until its charts are drawn."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)
    drawn(browser)


def drawn(browser: webdriver.Chrome) -> None:
    ready = "return document.documentElement.dataset.drawn"
    WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda driver: driver.execute_script(ready))


def ask(browser: webdriver.Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


@pytest.mark.parametrize("name", CHARTS)
def test_no_error_no_request_and_all_charts_drawn(name: str, browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    browser.get_log("browser")
    for width in WIDTHS:
        look(browser, pages[name], width)
        plots = browser.find_elements(By.CSS_SELECTOR, "[data-figure]")
        assert len(plots) == CHARTS[name]
        assert ask(browser, "[...document.querySelectorAll('[data-figure] .main-svg')].length") >= len(plots)
        inside = "[...document.querySelectorAll('.plot')].every(p => p.scrollWidth <= p.clientWidth + 1)"
        assert ask(browser, inside)
        assert ask(browser, "document.documentElement.scrollWidth <= innerWidth")
    assert ask(browser, "performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


def test_evil_names_run_nothing_and_are_read_as_they_are(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    look(browser, pages["evil"])
    assert ask(browser, "window.hacked") is None
    assert ask(browser, "document.querySelector('h1').textContent") == EVIL
    assert ask(browser, "document.querySelectorAll('[onerror], [src], a:not([href^=\"#\"])').length") == 0
    legend = ask(browser, "[...document.querySelectorAll('#chart-tradeoff .legendtext')].map(t => t.textContent)")
    assert [" ".join(text.split()) for text in legend] == [" ".join(name.split()) for name in EVILS]
    assert {EVILS[0], EVILS[1]} <= set(legend)


def test_the_button_changes_the_theme_of_text_and_charts(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    look(browser, pages["result"], theme="dark")
    tick = "getComputedStyle(document.querySelector('.xtick text')).fill"
    colors = f"[getComputedStyle(document.body).backgroundColor, {tick}]"
    dark = ask(browser, colors)
    browser.find_element(By.ID, "theme").send_keys(Keys.ENTER)
    drawn(browser)
    light = ask(browser, colors)
    assert all(a != b for a, b in zip(dark, light, strict=True))
    look(browser, pages["result"], theme="dark")
    assert ask(browser, colors) == light, "the choice is remembered"
    browser.execute_script("localStorage.clear()")


def test_the_system_changes_the_theme_where_the_button_was_not_used(
    browser: webdriver.Chrome, pages: dict[str, str]
) -> None:
    seen: set[str] = set()
    for theme in THEMES:
        look(browser, pages["result"], theme=theme)
        seen.add(ask(browser, "getComputedStyle(document.querySelector('.xtick text')).fill"))
    assert len(seen) == 2


def test_details_switches_and_choices_work_from_the_keyboard(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    look(browser, pages["result"], 390)
    for summary in browser.find_elements(By.CSS_SELECTOR, "main summary"):
        summary.send_keys(Keys.ENTER)
    assert ask(browser, "[...document.querySelectorAll('main details')].every(d => d.open)")
    outline = browser.find_element(By.CSS_SELECTOR, "#net rect.before")
    for show, visible in (("after", False), ("before", True), ("both", True)):
        button = browser.find_element(By.CSS_SELECTOR, f"button[data-show={show}]")
        button.send_keys(Keys.SPACE)
        assert outline.is_displayed() == visible
        assert button.get_attribute("aria-pressed") == "true"
    before = ask(browser, "document.querySelector('#chart-weights').data[0].y")
    Select(browser.find_element(By.ID, "tensor")).select_by_visible_text("stem.weight")
    assert ask(browser, "document.querySelector('#chart-weights').data[0].y") != before
    assert "are zero" in browser.find_element(By.ID, "weights-said").text


def test_wide_tables_scroll_in_regions_that_the_keyboard_reaches(
    browser: webdriver.Chrome, pages: dict[str, str]
) -> None:
    look(browser, pages["result"], 390)
    for region in browser.find_elements(By.CSS_SELECTOR, ".scroll"):
        assert region.get_attribute("tabindex") == "0"
        assert region.get_attribute("aria-label")
    layers = browser.find_element(By.CSS_SELECTOR, ".scroll[aria-label=Layers]")
    layers.send_keys(Keys.ARROW_RIGHT * 3)
    WebDriverWait(browser, 5).until(lambda driver: driver.execute_script("return arguments[0].scrollLeft", layers) > 0)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_at_levels_a_and_aa(
    width: int, theme: str, browser: webdriver.Chrome, pages: dict[str, str]
) -> None:
    checker, bad = axe(), list[str]()
    for name in ("result", "zeros", "scan", "measure"):
        look(browser, pages[name], width, theme)
        browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
        browser.execute_script(checker)
        done = browser.execute_async_script("axe.run(document, {runOnly: arguments[0]}).then(arguments[1])", LEVELS)
        assert done["passes"], "axe looked at nothing"
        for violation in done["violations"]:
            bad += [f"{name}: {violation['id']}: {node['html'][:120]}" for node in violation["nodes"]]
    assert bad == []


def test_without_scripts_text_and_tables_are_there(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages["result"])
        assert "What changed" in browser.find_element(By.TAG_NAME, "main").text
        assert not browser.find_element(By.ID, "theme").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_printing_opens_every_table_and_is_light(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    look(browser, pages["result"], theme="dark")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert ask(browser, "document.documentElement.dataset.theme") == "light"
    assert ask(browser, "[...document.querySelectorAll('details')].every(d => d.open)")
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert ask(browser, "document.documentElement.dataset.theme") is None
    assert ask(browser, "[...document.querySelectorAll('details')].every(d => !d.open)")


def test_first_contentful_paint_is_told(browser: webdriver.Chrome, pages: dict[str, str]) -> None:
    """A figure of this machine, so it is printed and not asserted; see it with pytest -s."""
    look(browser, pages["result"])
    entry = "performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)"
    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(f"return {entry}"))
    (paint,) = ask(browser, entry)
    print(f"first contentful paint from disk: {paint:.0f} ms", file=sys.stderr)
    drawn_last = ask(browser, "performance.getEntriesByType('navigation')[0].domInteractive")
    assert paint > 0
    assert drawn_last > 0
