"""Headless Chromium, driven over its debugging pipe: open a page, press keys, ask, look."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
)

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    # On a busy machine, a tab that is taken for one in the background gets no frames.
    *("--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows"),
    *("--disable-background-timer-throttling", "--disable-dev-shm-usage"),
)
KEYS = {
    "Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " "), "+": (187, "+"), "-": (189, "-"),
    "0": (48, "0"), "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}  # fmt: skip
PATIENCE = 60.0  # seconds for one answer


class Browser:
    """One tab. ``problems`` collects what its console and its page report."""

    def __init__(self, profile: Path) -> None:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; these two must be out of their way.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]
        options = ("--remote-debugging-pipe", f"--user-data-dir={profile}")
        placed = 'exec "$@" 3</dev/fd/{} 4>/dev/fd/{}'.format(*theirs)
        self._process = subprocess.Popen(
            ["sh", "-c", placed, "sh", str(CHROMIUM), *QUIET, *options],
            pass_fds=theirs,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_read, from_write, *theirs):
            os.close(end)
        self._out, self._in = to_write, from_read
        self._pending = b""
        self._numbers = itertools.count(1)
        self._session = ""
        self.problems: list[str] = []
        self._events: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # it leaves when nobody can talk to it any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def open(self, page: Path, width: int = 1200, height: int = 900, **media: str) -> None:
        """Load a file at a window's size; ``media`` such as ``prefers_color_scheme="dark"``."""
        self.resize(width, height)
        self.emulate(**media)
        self._events.clear()
        self._call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self._events:
            self._receive(deadline)

    def touch(self, on: bool) -> None:
        """Whether there is a touch screen, and nothing finer."""
        self._call("Emulation.setTouchEmulationEnabled", enabled=on)

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def emulate(self, medium: str = "", **media: str) -> None:
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self._call("Emulation.setEmulatedMedia", media=medium, features=features)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, patience: float = PATIENCE) -> bool:
        """Whether it comes true in so many seconds: on a busy machine, drawing takes its time."""
        deadline = time.monotonic() + patience
        while not (found := bool(self.ask(expression))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def frame(self) -> None:
        """Let a frame be drawn, which a tab that gets none does not hold up for ever."""
        self.ask("new Promise(drawn => { requestAnimationFrame(drawn); setTimeout(drawn, 10000) })")

    def settle(self, milliseconds: int = 250) -> None:
        """Wait so long, and for two frames: what a page does of itself, it does with them."""
        self.ask(f"new Promise(done => setTimeout(done, {milliseconds}))")
        self.frame()
        self.frame()

    def press(self, key: str) -> None:
        code, text = KEYS[key]
        both = {"key": key, "windowsVirtualKeyCode": code, "code": key.strip() or "Space"}
        down = {"text": text} if text else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **both, **down)
        self._call("Input.dispatchKeyEvent", type="keyUp", **both)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the left button, in pixels of the window."""
        self._mouse("mousePressed", start)
        for share in (0.3, 0.7, 1.0):
            self._mouse(
                "mouseMoved",
                tuple(a + share * (b - a) for a, b in zip(start, end, strict=True)),
            )
        self._mouse("mouseReleased", end)

    def double_click(self, at: tuple[float, float]) -> None:
        for count in (1, 2):
            self._mouse("mousePressed", at, count)
            self._mouse("mouseReleased", at, count)

    def swipe(self, at: tuple[float, float], up: float) -> None:
        """With a finger, as on a telephone."""
        x, y = at
        self._touch("touchStart", {"x": x, "y": y})
        for tenth in range(1, 11):
            self._touch("touchMove", {"x": x, "y": y - up * tenth / 10})
            self.frame()
        self._touch("touchEnd")

    def _touch(self, what: str, *points: dict[str, float]) -> None:
        self._call("Input.dispatchTouchEvent", type=what, touchPoints=points)

    def _mouse(self, what: str, at: tuple[float, ...], count: int = 1) -> None:
        self._call(
            "Input.dispatchMouseEvent",
            type=what, x=at[0], y=at[1], button="left", buttons=1, clickCount=count,
        )  # fmt: skip

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        found = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        found = self._call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.ask("document.documentElement.scrollWidth - window.innerWidth")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, *_ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "Chromium did not answer in time"
            got = os.read(self._in, 1 << 20)
            assert got, "Chromium went away"
            self._pending += got
        first, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(first)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
