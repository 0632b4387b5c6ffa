"""``rishd explore`` in headless Chromium, driven by Selenium: one server and one browser for all tests."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rishd.exploring.choices import RANGES
from rishd.exploring.computing import compute
from rishd.exploring.program import program
from rishd.exploring.view import View
from tests.machines import CHROMEDRIVER, CHROMIUM, needs_chromedriver

pytestmark = needs_chromedriver

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results" / "damping"
FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)
# Panel's widgets lie in shadow roots, where CSS selectors do not reach.
DEEP = """
const all = (selector, root = document) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll('*')].filter(node => node.shadowRoot).flatMap(node => all(selector, node.shadowRoot)),
];
const named = (selector, label) => all(selector).find(node => {
  const texts = [node.getAttribute('aria-label'), ...[...(node.labels || [])].map(each => each.textContent)];
  return texts.some(text => (text || '').startsWith(label));
});
"""


class Visit:
    """A browser's window, and what is looked for in it."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self, path="", *, width=1280):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.driver.get_log("browser")
        self.driver.get(self.url + path)
        self.until("all('canvas').some(canvas => canvas.width > 100) && all('table, li').length > 0")
        self.until("Bokeh.documents[0].is_idle")

    def js(self, expression, *arguments):
        return self.driver.execute_script(f"{DEEP} return {expression};", *arguments)

    def until(self, expression, *arguments):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 120).until(lambda _: self.js(expression, *arguments), expression)

    def control(self, label):
        return self.js("named('input[type=range]', arguments[0])", label)

    @property
    def pictures(self):
        """The pixels of every figure."""
        return self.js(
            "all('.bk-Figure').map(plot => all('canvas', plot.shadowRoot).map(canvas => canvas.toDataURL()).join())"
        )

    def until_pictures(self, are_right):
        """Wait until the pictures are as wanted; whether they became so."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.wait import WebDriverWait

        try:
            return WebDriverWait(self.driver, 60).until(lambda _: are_right(self.pictures))
        except TimeoutException:
            return False

    @property
    def words(self):
        return self.js("all('li').map(node => node.textContent).join(' ')")

    @property
    def query(self):
        return {name: values[0] for name, values in parse_qs(urlsplit(self.driver.current_url).query).items()}

    @property
    def complaints(self):
        """Errors and warnings of the console; Chromium's own about drawing without a GPU is not the page's."""
        entries = self.driver.get_log("browser")
        return [each["message"] for each in entries if each["level"] != "INFO" and "WebGL" not in each["message"]]


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "rishd", "explore", "--no-open", "--results", str(RESULTS)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as server:
        try:
            yield server.stdout.readline().split()[0].removesuffix("results")
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def visit(url, tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield Visit(driver, url)
    driver.quit()


def test_a_slider_moves_pictures_words_code_and_url(visit):
    from selenium.webdriver.common.keys import Keys

    visit.open()
    before, words = visit.pictures, visit.words
    assert len(before) == 5
    assert f"LITE: f − inf f = {compute(View()).losses[1, 0, -1]:.3g}" in words
    visit.control("χ").send_keys(Keys.ARROW_RIGHT)
    visit.until("location.search == '?chi=3.1'")
    visit.until("all('textarea').some(area => area.value == arguments[0])", str(program(View(chi=3.1))))
    visit.until("all('li').some(node => node.textContent == arguments[0])", compute(View(chi=3.1)).messages[1])
    changed = visit.until_pictures(lambda now: all(old != new for old, new in zip(before, now, strict=True)))
    assert changed  # paths, loss, stability, modes, energy
    assert visit.complaints == []


def test_every_control_is_reached_by_keyboard_and_has_a_name(visit):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit.open()
    reached = []
    for _ in range(30):
        ActionChains(visit.driver).send_keys(Keys.TAB).perform()
        focused = """(() => { let node = document.activeElement;
            while (node.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
            return node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent; })()"""
        reached.append(visit.js(focused))
    names = [limits.label for limits in RANGES.values()]
    wanted = [*names, "landscape", "metric or preconditioner", "integrator", "Copy the Python code", "Results"]
    assert [name for name in wanted if not any(found.startswith(name) for found in reached)] == []
    assert any(found.startswith("Python code of this view") for found in reached)
    assert visit.complaints == []


def test_a_url_restores_its_view_and_says_what_it_cannot_use(visit):
    wanted = View(landscape="saddle", metric="second-moment", eta=0.0123, chi=1.7, noise=0.3, steps=60)
    query = "&".join(f"{name}={text}" for name, text in wanted.query().items())
    visit.open(f"?{query}&alpha=<b>x</b>&colour=red")
    assert visit.control("χ").get_attribute("value") == "1.7"
    assert visit.js("named('select', 'landscape').selectedOptions[0].text") == "Saddle held by a quartic"
    visit.until("all('textarea').some(area => area.value == arguments[0])", str(program(wanted)))
    alert = visit.until("all('[role=alert], .MuiAlert-root').map(node => node.textContent).join(' ')")
    assert "alpha = '<b>x</b>' is not a number" in alert
    assert "'colour' is no setting of this page" in alert
    assert "Traceback" not in alert
    assert visit.complaints == []


def test_a_run_that_diverges_is_told_and_the_page_goes_on(visit):
    from selenium.webdriver.common.keys import Keys

    visit.open("?landscape=hyperbola&eta=1.2")
    assert "LITE runs away: at t = 2" in visit.words
    visit.control("η").send_keys(Keys.HOME)  # the smallest learning rate
    visit.until("!all('li').some(node => node.textContent.includes('runs away'))")
    assert visit.query["eta"] == "0.0001"
    assert visit.complaints == []


def test_results_are_filtered(visit):
    visit.open("results?variants=muon;inside")
    assert visit.js("all('td').map(node => node.textContent)")[0] == "muon"
    before = visit.pictures[0]
    visit.js("named('select', 'seeds')").send_keys("each")
    visit.until("location.search.includes('seeds=each')")
    assert visit.until_pictures(lambda now: now[0] != before)
    assert visit.query == {"variants": "muon;inside", "seeds": "each"}
    visit.js("named('input[type=checkbox]', 'graded')").send_keys(" ")
    visit.until("all('td').some(node => node.textContent == 'graded')")
    assert visit.complaints == []


@pytest.mark.parametrize("path", ["?eta=2", "results"])
def test_a_phone_has_no_horizontal_scrolling(path, visit):
    visit.open(path, width=360)
    found = visit.js(
        "[document.documentElement.scrollWidth, innerWidth, all('*').filter(node => node.clientWidth > 200"
        " && node.scrollWidth > node.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(node).overflowX)"
        " && !node.matches('textarea')).map(node => node.className)]"
    )
    assert found[0] <= found[1] == 360
    assert found[2] == []
    wide = visit.js(
        "all('canvas, input, p, li, td, button, textarea').filter(node => node.checkVisibility()"
        " && node.getBoundingClientRect().right > 361).map(node => node.outerHTML.slice(0, 120))"
    )
    assert wide == []
    assert visit.complaints == []
