"""A headless Chromium driven over WebDriver (https://www.w3.org/TR/webdriver2/), by the standard library."""

import base64
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "browser"]

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of element references, fixed by the standard


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, page: Path) -> None:
        """Load a file and wait until its scripts are done."""
        self._post("url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns in the page; arguments: its `arguments`."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def resize(self, width: int, height: int) -> None:
        """The size of the window."""
        self._post("window/rect", {"width": width, "height": height})

    def move_to(self, selector: str, x: float, y: float) -> None:
        """Move the pointer to (x, y) from the upper left corner of the element, which is scrolled to first."""
        left, top = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const box = e.getBoundingClientRect(); return [box.left, box.top];",
            selector,
        )
        moves = [{"type": "pointerMove", "duration": 0, "x": round(left + x), "y": round(top + y)}]
        self._post("actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def click(self, selector: str) -> None:
        """Click an element as a user does."""
        self._post(f"element/{self._find(selector)}/click", {})

    def press(self, selector: str, *keys: str) -> None:
        """Type keys into an element, which takes the focus."""
        self._post(f"element/{self._find(selector)}/value", {"text": "".join(keys)})

    def dark(self, on: bool) -> None:
        """Prefer a dark or a light page."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self._post("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def console(self) -> list[str]:
        """Errors and warnings since the last call."""
        return [entry["message"] for entry in self._post("se/log", {"type": "browser"}) if entry["level"] != "INFO"]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A picture of the page, beyond the window too, or of the window alone."""
        shot = {"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": whole}}
        path.write_bytes(base64.b64decode(self._post("goog/cdp/execute", shot)["data"]))

    def _find(self, selector: str) -> str:
        return str(self._post("element", {"using": "css selector", "value": selector})[_ELEMENT])

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        return _request(f"{self._session}/{command}", body)


@contextmanager
def browser(programs: tuple[str, str]) -> Iterator[Browser]:
    """A browser with a profile of its own, gone at the end."""
    path, driver = programs
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="meshemu-browser-", ignore_cleanup_errors=True) as profile:
        service = subprocess.Popen(
            [driver, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile}, start_new_session=True,
        )  # fmt: skip
        root = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(root)
            options = {"binary": path, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = f"{root}/session/{_request(f'{root}/session', _capabilities(wanted))['sessionId']}"
            try:
                yield Browser(session)
            finally:
                _request(session, None, method="DELETE")
        finally:
            service.terminate()
            service.wait(10)


def _capabilities(wanted: dict[str, Any]) -> dict[str, Any]:
    return {"capabilities": {"alwaysMatch": wanted}}


def _wait_until_ready(root: str) -> None:
    for _ in range(100):
        try:
            if _request(f"{root}/status", None, method="GET")["ready"]:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("chromedriver does not answer")


def _request(url: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {json.load(error)['value']['message']}") from None
