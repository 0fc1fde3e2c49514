"""The page in Chromium, driven by selenium; skipped if either is not installed."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdr.report.page.drawing import DARK, LIGHT
from kdr.report.page.html import Page, page_html
from tests.conftest import AblationLog, ExampleLog
from tests.report.page.conftest import PageOf

pytestmark = pytest.mark.slow

PHONE, DESK = (360, 800), (1280, 900)
Opened = Callable[..., Any]
"""Takes a page, the size of the window and the colour scheme."""
HOSTILE = (
    "<img src=x "
    "onerror=\"document.title='hacked'\"></script><script>document.title='hacked'</script>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--force-device-scale-factor=1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Opened:
    """Opens a page from disk and waits until its figures are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    def show(page: Page, size: tuple[int, int] = DESK, scheme: str = "light") -> Any:
        path = tmp_path / "page.html"
        path.write_text(page_html(page), encoding="utf-8")
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # drops messages of earlier pages
        metrics = {
            "width": size[0],
            "height": size[1],
            "deviceScaleFactor": 1,
            "mobile": size == PHONE,
        }
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(path.as_uri())
        WebDriverWait(browser, 60).until(
            lambda _: browser.execute_script("return document.body.dataset.drawn") == scheme
        )
        return browser

    return show


@pytest.fixture(params=["full_ablation", "full_search"])
def study(request: pytest.FixtureRequest) -> AblationLog | ExampleLog:
    found: AblationLog | ExampleLog = request.getfixturevalue(request.param)
    return found


def count_marks(browser: Any, figure: str) -> int:
    """Counts the points, lines and cells that a figure draws."""
    marks = "'.point, .js-line, .js-fill, .heatmaplayer image'"
    return int(
        browser.execute_script(
            f"return document.getElementById(arguments[0]).querySelectorAll({marks}).length",
            figure,
        )
    )


def test_every_figure_is_drawn_without_an_error_or_a_request(
    study: AblationLog | ExampleLog, page_of: PageOf, opened: Opened
) -> None:
    page = page_of(study)
    browser = opened(page)
    ids = [block.id for section in page.sections for block in section.figures]
    assert ids
    assert {
        figure: count_marks(browser, figure) for figure in ids if not count_marks(browser, figure)
    } == {}
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        it["params"]["request"]["url"]
        for it in messages
        if it["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in urls} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in urls) == 1


def test_figures_have_the_marks_of_their_data(
    full_ablation: AblationLog, page_of: PageOf, opened: Opened
) -> None:
    browser = opened(page_of(full_ablation))
    # four comparisons, and the differences of 5 + 5 + 5 + 3 seeds
    assert count_marks(browser, "figure-differences") == 4 + 18
    # completed trials: 4 arms by 5 seeds, and 3
    assert count_marks(browser, "figure-cost") == 23


def test_a_phone_shows_the_page_without_scrolling_sideways(
    study: AblationLog | ExampleLog, page_of: PageOf, opened: Opened
) -> None:
    browser = opened(page_of(study), size=PHONE)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    ends = (
        "return [...document.querySelectorAll('.plot .main-svg')].map(it => "
        "it.getBoundingClientRect().right)"
    )
    assert max(browser.execute_script(ends)) <= PHONE[0]


@pytest.mark.parametrize(("scheme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_page_and_figures_use_the_readers_colour_scheme(
    full_ablation: AblationLog,
    page_of: PageOf,
    opened: Opened,
    scheme: str,
    palette: Mapping[str, str],
) -> None:
    browser = opened(page_of(full_ablation), scheme=scheme)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.execute_script(style, "figure", "backgroundColor") == rgb(palette["$surface"])
    assert browser.execute_script(style, "body", "color") == rgb(palette["$ink"])
    assert browser.execute_script(style, "#figure-curves .legendtext", "fill") == rgb(
        palette["$ink"]
    )


def test_figures_follow_a_change_of_the_colour_scheme(
    full_search: ExampleLog, page_of: PageOf, opened: Opened
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser = opened(page_of(full_search))
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    WebDriverWait(browser, 60).until(
        lambda _: browser.execute_script("return document.body.dataset.drawn") == "dark"
    )


def test_the_keyboard_reaches_results_tables_and_details(
    full_ablation: AblationLog, page_of: PageOf, opened: Opened
) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = opened(page_of(full_ablation))
    ActionChains(browser).send_keys(Keys.TAB).perform()
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the results"
    assert skip.location["y"] >= 0  # visible once focused
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    skip.send_keys(Keys.ENTER)
    seen = []
    for _ in range(14):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.append(browser.switch_to.active_element.tag_name)
    assert {"div", "button", "summary"} <= set(seen)
    summary = next(it for it in browser.find_elements("css selector", "summary"))
    summary.send_keys(Keys.ENTER)
    assert browser.execute_script("return arguments[0].parentElement.open", summary)


def test_tables_are_sorted_by_their_heads(
    full_search: ExampleLog, page_of: PageOf, opened: Opened
) -> None:
    browser = opened(page_of(full_search))
    trials = (
        "return [...document.querySelectorAll('#table tbody tr')].map(row => "
        "row.cells[1].textContent)"
    )
    button = browser.find_element("css selector", "#table thead th:nth-child(4) button")
    assert browser.execute_script(trials)[0] == "trial-0005"
    button.click()
    ascending = browser.execute_script(trials)
    # without a value: last
    assert (ascending[0], ascending[-2], ascending[-1]) == (
        "trial-0006",
        "trial-0005",
        "trial-0007",
    )
    button.click()
    assert browser.execute_script(trials)[:2] == ["trial-0005", "trial-0004"]
    assert (
        browser.find_element("css selector", "#table thead th:nth-child(4)").get_attribute(
            "aria-sort"
        )
        == "descending"
    )


def test_hostile_texts_do_nothing_and_are_shown(
    example_log: ExampleLog, page_of: PageOf, opened: Opened
) -> None:
    from selenium.webdriver.common.keys import Keys

    example_log.trial("bad", arm=HOSTILE, AP=0.2, event="stopped_early", epoch=2)
    example_log.trial("worse", arm=HOSTILE, AP=0.3, host=HOSTILE)
    example_log.trial("worst", event="failed", reason=HOSTILE, traceback=HOSTILE, epoch=1)
    browser = opened(page_of(example_log, question=(("Question", HOSTILE),)))
    for summary in browser.find_elements("css selector", "summary"):
        summary.send_keys(Keys.ENTER)
    assert browser.title == "example · kdr"
    assert browser.find_elements("css selector", "img") == []
    assert HOSTILE in browser.find_element("css selector", ".question").text.replace("<Img", "<img")
    assert HOSTILE in browser.find_element("css selector", "#figure-curves .legend").text
    assert browser.get_log("browser") == []


def test_an_unfinished_page_reloads_and_keeps_its_details_open(
    full_ablation: AblationLog, page_of: PageOf, opened: Opened
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser = opened(page_of(full_ablation, reload_s=1.5))
    loaded = browser.execute_script(
        "document.querySelectorAll('details')[1].open = true; return performance.timeOrigin"
    )
    reloaded = "return document.body && document.body.dataset.drawn && performance.timeOrigin"
    WebDriverWait(browser, 60).until(
        lambda _: (browser.execute_script(reloaded) or loaded) != loaded
    )
    is_open = "return [...document.querySelectorAll('details')].map(it => it.open)"
    assert [index for index, found in enumerate(browser.execute_script(is_open)) if found] == [1]


def rgb(color: str) -> str:
    return "rgb({}, {}, {})".format(*(int(color[start : start + 2], 16) for start in (1, 3, 5)))
