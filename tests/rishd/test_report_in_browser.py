"""The report in headless Chromium, driven over a pipe, which needs nothing but Python's own library."""

import contextlib
import json
import os
import select
import subprocess
import time

import pytest

from tests.machines import CHROMIUM, needs_chromium

pytestmark = needs_chromium

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
WIDTHS = {"narrow phone": 360, "phone": 390, "desktop": 1280}

MEASURE = """(WIDTH => {
  const shown = node => node.checkVisibility() && !node.closest('details:not([open])');
  const size = node => { const box = node.getBoundingClientRect(); return Math.min(box.width, box.height); };
  const all = selector => [...document.querySelectorAll(selector)];
  const small = selector => all(selector).filter(node => shown(node) && !(size(node) > 2)).map(node => node.outerHTML);
  const style = getComputedStyle(document.body);
  return {
    page: document.documentElement.scrollWidth, window: window.innerWidth,
    formulas: all('math').length, figures: all('figure > svg').length, images: all('img').length,
    flat: [...small('math'), ...small('figure > svg'), ...small('svg.mark'), ...small('img')],
    unloaded: all('img').filter(image => !image.naturalWidth).length,
    font: document.fonts.check('16px "RISHD Math"') && [...document.fonts].every(font => font.status === 'loaded'),
    wide: all('p, li, dd, figure, h1, h2, h3, h4, .statement, .together').filter(node => shown(node)
      && !node.closest('.scroll, .display') && node.getBoundingClientRect().right > WIDTH + 0.5)
      .map(node => node.outerHTML.slice(0, 200)),
    ground: style.backgroundColor, ink: getComputedStyle(document.querySelector('figure > svg text')).fill,
    targets: all('a[href^="#"]').filter(link => !document.getElementById(link.getAttribute('href').slice(1))).length,
  };
})"""


class Browser:
    """Chromium's debugging protocol: JSON messages, each ended by a zero byte."""

    def __init__(self, profile):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        at_three_and_four = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'  # where Chromium reads and writes
        self._process = subprocess.Popen(
            ["bash", "-c", at_three_and_four, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._sent, self.events = b"", 0, []
        self._session = None

    def open(self, url, width):
        """Load a page in a window of that width and wait until it is complete."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive(600)
        self.evaluate("document.fonts.ready.then(() => true)")

    def evaluate(self, expression):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def __call__(self, method, **parameters):
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(600)
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("Chromium does not answer.")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def close(self):
        self._session = None
        with contextlib.suppress(OSError, TimeoutError, AssertionError):
            self("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def _complaints(events):
    """Console messages and network requests."""
    console = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    shown = [event["params"] for event in events if event["method"] in console]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return shown, [url[:80] for url in requests if not url.startswith("data:")]


@pytest.mark.parametrize("device", WIDTHS)
def test_page_is_drawn_whole_and_fits(device, browser, report_file):
    browser.open(report_file.as_uri(), WIDTHS[device])
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true }) ?? 0")
    found = browser.evaluate(f"{MEASURE}({WIDTHS[device]})")
    shown, requests = _complaints(browser.events)
    assert shown == []
    assert requests == [report_file.as_uri()[:80]]  # the page itself and nothing else
    assert found["page"] <= found["window"] == WIDTHS[device]
    assert found["wide"] == []
    assert found["formulas"] > 100
    assert found["figures"] > 20
    assert found["images"] == 2  # the study's and the section's
    assert found["flat"] == []
    assert found["unloaded"] == 0
    assert found["font"]
    assert found["targets"] == 0


def test_page_follows_the_colour_scheme(browser, report_file):
    def brightness(colour):
        return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 765

    browser.open(report_file.as_uri(), 390)
    light = browser.evaluate(f"{MEASURE}(390)")
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.evaluate(f"{MEASURE}(390)")
    browser("Emulation.setEmulatedMedia", features=[])
    assert brightness(light["ground"]) > brightness(light["ink"]) + 0.7
    assert brightness(dark["ink"]) > brightness(dark["ground"]) + 0.7


def test_the_checks_see_what_is_wrong(browser, report_file, tmp_path):
    """A page that loads something, is too wide and has an empty formula fails."""
    text = report_file.read_text(encoding="utf-8").replace("default-src 'none'; img-src data:", "img-src data: file:")
    wrong = '<img alt="x" src="missing.png"><p style="width: 900px">wide</p><math></math>'
    (tmp_path / "wrong.html").write_text(text.replace("<main>", f"<main>{wrong}"), encoding="utf-8")
    browser.open((tmp_path / "wrong.html").as_uri(), 390)
    found = browser.evaluate(f"{MEASURE}(390)")
    shown, requests = _complaints(browser.events)
    assert len(requests) == 2
    assert shown
    assert found["page"] > 390
    assert found["wide"]
    assert any("<math" in flat for flat in found["flat"])
    assert found["unloaded"] == 1
