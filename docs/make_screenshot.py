"""Takes the pictures of docs/report.md with Debian's chromium: python docs/make_screenshot.py PAGE.html OUT_PREFIX"""

from __future__ import annotations

import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


def main(page: str, prefix: str) -> None:
    """The first screen and the whole page, in both themes."""
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        browser.get(Path(page).resolve().as_uri())
        whole = browser.execute_script("return document.documentElement.scrollHeight")
        for theme in ("light", "dark"):
            if browser.execute_script("return document.documentElement.dataset.theme") != theme:
                browser.find_element(By.CSS_SELECTOR, "button.theme").click()
            for name, height in (("", 1000), ("-whole", whole)):
                browser.set_window_size(1280, height)
                browser.implicitly_wait(1)
                browser.execute_async_script("setTimeout(arguments[0], 1500)")
                browser.save_screenshot(f"{prefix}-{theme}{name}.png")
    finally:
        browser.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
