"""A headless Chromium for the pages that people look at."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1100",
)


def is_installed() -> bool:
    """Whether Debian's chromium and its driver are here."""
    return all(shutil.which(name) for name in ("chromium", "chromedriver"))


class Browser:
    """Opens pages, waits for what they show and takes pictures where CDCD_SCREENSHOTS says."""

    def __init__(self) -> None:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService

        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in OPTIONS:
            options.add_argument(option)
        self.driver = Chrome(options, ChromeService(shutil.which("chromedriver")))

    def close(self) -> None:
        self.driver.quit()

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # pages that differ after the # alone would not load again
        self.driver.get(url)

    def text(self) -> str:
        shown = str(self.driver.execute_script("return document.body.innerText"))
        return shown.replace("\N{NO-BREAK SPACE}", " ")

    def wait_for(self, *texts: str, seconds: float = 90) -> str:
        """Wait until the page shows all the texts, and return everything it shows."""
        until = time.monotonic() + seconds
        while not all(text in self.text() for text in texts):
            missing = [text for text in texts if text not in self.text()]
            assert time.monotonic() < until, f"the page lacks {missing}:\n{self.text()[:3000]}"
            time.sleep(0.25)
        return self.text()

    def ask(self, script: str, seconds: float = 60) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        until = time.monotonic() + seconds
        while not (value := self.driver.execute_script(f"return {script}")):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.25)
        return value

    def enter_frame(self) -> None:
        """Go into the page's first frame."""
        self.ask("document.querySelector('iframe') !== null")
        self.driver.switch_to.frame(0)

    def shoot(self, name: str) -> None:
        """Take a picture for the documents, where CDCD_SCREENSHOTS names a folder."""
        folder = os.environ.get("CDCD_SCREENSHOTS")
        if folder:
            time.sleep(1)  # for what fades in
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
