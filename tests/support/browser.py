"""Headless Chromium for tests of pages, and what is asked of every page: no overlapping text, enough contrast."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import FLAGS

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Start a browser with a fresh profile; the test is skipped without one, or fails if SAH_REQUIRE_BROWSER=1."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = "no Chromium with its driver: install them (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("SAH_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()


def set_size(driver: Any, width: int, height: int = 900) -> None:
    """Give the page a size of its own, which may be narrower than a window can be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_scheme(driver: Any, scheme: str) -> None:
    """Say which colours the user's system prefers: `light` or `dark`."""
    preferred = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preferred]})


def console_errors(driver: Any) -> list[str]:
    """Return what the console told since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def overlaps(driver: Any) -> list[str]:
    """Find texts that lie on each other, in the whole height of the page."""
    found: list[str] = driver.execute_script(_TEXTS + _OVERLAPS)
    return found


def outside(driver: Any) -> list[str]:
    """Find texts that stick out of the page, which then scrolls sideways, or out of their drawing, which cuts them."""
    found: list[str] = driver.execute_script(_TEXTS + _OUTSIDE)
    return found


def low_contrast(driver: Any, least: float = 4.5) -> list[str]:
    """Find texts whose contrast with what is behind them is below that of WCAG 2.2, 1.4.3."""
    found: list[str] = driver.execute_script(_TEXTS + _CONTRAST, least)
    return found


# Every visible piece of text with its box, cut to what scrolling containers show of it.
_TEXTS = """
const texts = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, element = node.parentElement;
  if (!node.data.trim() || element.closest("script, noscript, option, .offscreen, .skip, [hidden]")) continue;
  if (!element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) {
    let { left, right, top, bottom } = box;
    for (let up = element; up && up !== document.body; up = up.parentElement) {
      if (getComputedStyle(up).overflow === "visible" || up.tagName === "svg") continue;
      const clip = up.getBoundingClientRect();
      left = Math.max(left, clip.left); right = Math.min(right, clip.right);
      top = Math.max(top, clip.top); bottom = Math.min(bottom, clip.bottom);
    }
    if (right - left <= 1 || bottom - top <= 1) continue;
    texts.push({ node, element, left, right, top, bottom, text: node.data.trim() });
  }
}
"""

_OVERLAPS = """
const found = [];
texts.sort((a, b) => a.top - b.top);
texts.forEach((a, place) => {
  for (let other = place + 1; other < texts.length && texts[other].top < a.bottom; other++) {
    const b = texts[other];
    if (a.node === b.node) continue;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    // Boxes of a line are taller than its letters.
    if (wide <= 1.5 || high <= 4) continue;
    found.push(`${a.text.slice(0, 60)} / ${b.text.slice(0, 60)} (${wide.toFixed(1)} x ${high.toFixed(1)})`);
  }
});
return found;
"""

_OUTSIDE = """
const page = document.documentElement, width = page.clientWidth;
const found = texts.filter((text) => text.right > width + 1 || text.left < -1).map((text) => text.text.slice(0, 80));
for (const label of document.querySelectorAll("svg text")) {
  const box = label.getBoundingClientRect(), drawing = label.closest("svg").getBoundingClientRect();
  if (!box.width || !label.checkVisibility()) continue;
  const across = Math.max(drawing.left - box.left, box.right - drawing.right);
  const out = Math.max(across, drawing.top - box.top, box.bottom - drawing.bottom);
  if (out > 1) found.push(`${label.textContent} is cut off by ${out.toFixed(1)} in ${label.closest("figure").id}`);
}
if (page.scrollWidth > width) found.push(`the page is ${page.scrollWidth} wide`);
return found;
"""

_CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([red, green, blue]) => {
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = [red, green, blue].map((part) => linear(part / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let up = element; up; up = up.parentElement) {
    const colour = numbers(getComputedStyle(up).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const inCell = (element) => /^on-/.test(element.getAttribute("class"));
const found = new Set();
for (const { element, text } of texts) {
  const style = getComputedStyle(element);
  const colour = numbers(element.closest("svg") ? style.fill : style.color);
  const back = inCell(element) ? numbers(getComputedStyle(element.previousElementSibling).fill) : behind(element);
  const [high, low] = [light(colour), light(back)].sort((a, b) => b - a);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio >= arguments[0] || element.closest("button:disabled")) continue;
  found.add(`${ratio.toFixed(2)}: ${text.slice(0, 60)} (${colour} on ${back})`);
}
return [...found];
"""
