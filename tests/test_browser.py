"""The page in a real browser, from disk and with the network off: what a reader sees, clicks and types."""

import os
import re
import shutil
import time

import pytest

from hostile_texts import HOSTILE, hostile_runs
from made_outcomes import manifest, outcome, store
from spaceless.live import look
from spaceless.page import html_text
from spaceless.report import gather, write_report

CHROMIUM = os.environ.get("SPACELESS_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH and none named in $SPACELESS_CHROMIUM: the page is not looked at")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
playwright.expect.set_options(timeout=20_000)  # milliseconds: the machine may be busy
POINTS = ".mark-symbol.role-mark path"  # what Vega draws for a mark with a shape


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def look_at(browser):
    """Open a file and return its page once the charts answer; complains of errors, requests and dialogs at the end."""
    complaints, contexts = [], []

    def opened(path, width=1000, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
        page.on("dialog", lambda d: (complaints.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: complaints.append(f"request: {r.url}") if r.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.wait_for_selector("body.ready")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A study of two networks and two methods with three seeds each, one K missing and one failed."""
    root = tmp_path_factory.mktemp("runs")
    made = [outcome(top1=74.0 + s / 5, seed=s, model=m) for s in range(3) for m in ("vgg16", "resnet50")]
    made += [outcome(method, k, seed=s, top1=75.0 - k + s / 5, params=34_000_000 - 2_000_000 * k, model=m)
             for method in ("gap_fc", "conv1x1") for k in (1, 2, 5) for s in range(3) for m in ("vgg16", "resnet50")]
    gone = outcome("conv1x1", 4)
    store(root, *made, outcome("gap_fc", 4, status="failed"))
    manifest(root, "two", [*made, gone, outcome("gap_fc", 4)], experiment="table1")
    return write_report([root])


def _column(page, name):
    return page.evaluate("""name => {
        const table = document.querySelectorAll("table")[1];
        const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name);
        return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
    }""", name)


def test_it_opens_from_disk_with_all_charts_drawn(report, look_at):
    page = look_at(report)
    figures = page.locator("figure")
    assert figures.count() == 3  # the two networks side by side, and each alone
    assert page.locator("figure .drawn svg").count() == 3
    for i in range(3):
        assert figures.nth(i).locator(POINTS).count() >= 8
    assert page.locator("figure.alive").count() == 3
    assert page.locator(".picture:not(.drawn)").count() == 0  # the still pictures have given way


def test_a_click_or_a_key_hides_a_method_and_brings_it_back(report, look_at):
    page = look_at(report)
    figure = page.locator("figure").nth(1)
    marks = figure.locator(POINTS)
    button = figure.get_by_role("button", name="GAP+FC")
    before = marks.count()
    button.click()
    playwright.expect(button).to_have_attribute("aria-pressed", "false")
    playwright.expect(marks).not_to_have_count(before)
    hidden = marks.count()
    button.press("Enter")
    playwright.expect(button).to_have_attribute("aria-pressed", "true")
    playwright.expect(marks).to_have_count(before)
    figure.get_by_role("button", name="printed in the paper").press(" ")
    playwright.expect(marks).not_to_have_count(before)
    assert hidden < marks.count() < before


def test_the_same_accuracies_against_parameters(report, look_at):
    page = look_at(report)
    figure = page.locator("figure").nth(1)
    figure.get_by_role("radio", name="K", exact=True).focus()
    figure.get_by_role("radio", name="K", exact=True).press("ArrowRight")
    playwright.expect(figure.locator(".drawn svg text", has_text="share of the units")).to_have_count(1)
    figure.get_by_role("radio", name="parameters").check()
    playwright.expect(figure.locator(".drawn svg text", has_text="parameters (M)")).to_have_count(1)
    assert figure.locator(".drawn svg text", has_text="K: modified units").count() == 0
    assert figure.locator(".drawn").count() == 1


def test_pointing_at_a_mark_shows_its_trial(report, look_at):
    page = look_at(report)
    page.locator("figure").nth(1).locator(POINTS).nth(1).hover(force=True)
    shown = page.locator("#vg-tooltip-element")
    playwright.expect(shown).to_be_visible()
    text = shown.inner_text()
    assert "n = 3, seed 0, 1, 2" in text
    assert re.search(r"trial\s+resnet50 \w+ K=\d cifar100", text)
    assert len(re.findall(r"\b[0-9a-f]{16}\b", text)) == 3  # their folders


def test_a_heading_sorts_by_keyboard_and_what_is_missing_stays_last(report, look_at):
    page = look_at(report)
    head = page.locator("table").nth(1).locator("th", has_text="top-1percent")
    first = _column(page, "top-1percent")
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    up = _column(page, "top-1percent")
    numbers = [float(text) for text in up if text != "–"]
    assert numbers == sorted(numbers)
    assert up[len(numbers):] == ["–"] * first.count("–") != []
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert _column(page, "top-1percent") == [*map("{:.2f}".format, sorted(numbers, reverse=True)), *up[len(numbers):]]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert _column(page, "top-1percent") == first


@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (1000, "dark"), (390, "light")])
def test_light_dark_and_a_phone(report, look_at, width, scheme):
    page = look_at(report, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.locator("figure .drawn svg").all():
        assert figure.bounding_box()["width"] <= width
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    bright = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ground, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light")


def test_the_page_reads_the_same_without_scripts(report, browser):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("figure svg").count() == 3
    assert page.locator("button").count() == 0
    context.close()


def test_the_policy_lets_nothing_out_and_no_text_become_a_script(report, browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("body.ready")
    blocked = page.evaluate("""async () => {
        const found = [];
        document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
        await fetch("https://example.invalid/").catch(() => {});
        document.body.append(Object.assign(document.createElement("img"), { src: "https://example.invalid/x.png" }));
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.broken = 1" }));
        await new Promise((resolve) => setTimeout(resolve, 100));
        return [found.sort(), window.broken === undefined];
    }""")
    assert blocked == [["connect-src", "img-src", "script-src-elem"], True]
    context.close()


def test_forty_hostile_texts_do_nothing(tmp_path, look_at):
    path = tmp_path / "rough.html"
    path.write_text(html_text(gather([hostile_runs(tmp_path, HOSTILE, charts=(2, 11, 15, 28))])), encoding="utf-8")
    page = look_at(path)
    unexpected = ("iframe, object, embed, base, link, img, math, audio, video, source, meta[http-equiv=refresh], "
                  "form:not(.vega-bindings), input:not(.place input)")
    assert page.locator(unexpected).count() == 0
    assert page.locator("script").count() == 2 + page.locator("figure").count()
    assert page.locator("style").count() == 1  # and vega's own, which the policy refuses, is not there
    assert page.evaluate("[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
                         ".filter((name) => name.startsWith('on'))") == []
    assert "<img src=x onerror=alert(1)>" in page.locator("body").inner_text()
    page.locator("figure button").first.click()
    page.locator("th button").first.click()


def test_a_page_that_is_watched_loads_itself_again_and_keeps_what_was_chosen(tmp_path, look_at):
    made = [outcome(seed=0), *(outcome("gap_fc", k) for k in (1, 2, 3))]
    manifest(tmp_path, "fig2-vgg16", made, experiment="fig2-vgg16")
    path = tmp_path / "live.html"

    def write(every):
        path.write_text(html_text(gather([tmp_path]), look([tmp_path], every, time.time())), encoding="utf-8")

    store(tmp_path, *made[:3])
    write(1)
    page = look_at(path)
    assert page.locator("progress").get_attribute("value") == "3"
    page.locator("figure").first.get_by_role("button", name="GAP+FC").click()
    store(tmp_path, made[3])
    write(None)
    playwright.expect(page.locator("progress")).to_have_attribute("value", "4")
    assert page.locator(".watched input").count() == 0  # nothing more is to come
