"""A headless Chromium over its debugging pipe: pages are shown, and what they do is written down."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
SECONDS = 60.0
OBSERVED = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


class Page:
    """One tab: ``complaints`` are the console's entries, ``requests`` the addresses that were asked for."""

    def __init__(self, browser: "Browser") -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.complaints: list[dict[str, Any]] = []
        self.requests: list[str] = []

    def call(self, method: str, **options: object) -> dict[str, Any]:
        return self._browser.call(method, self.session, **options)

    def show(self, file: Path, width: int, scheme: str) -> "Page":
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._browser.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        self._browser.wait_for("Page.loadEventFired", self.session)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        own = [event for event in self._browser.events if event.get("sessionId") == self.session]
        self.complaints = [event for event in own if event["method"] in OBSERVED]
        self.requests = [e["params"]["request"]["url"] for e in own if e["method"] == "Network.requestWillBeSent"]
        return self

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    def __init__(self, command: int, answers: int) -> None:
        self._command, self._answers = command, answers
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **options: object) -> dict[str, Any]:
        self._count += 1
        own = self._count
        message = {"id": own, "method": method, "params": options}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._command, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == own:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str, session: str) -> None:
        is_it = lambda event: event.get("method") == method and event.get("sessionId") == session  # noqa: E731
        while not any(map(is_it, self.events)):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(self._answers, 1 << 16) if ready else b""
            assert piece, "the browser gave no answer"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def running(profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own in this folder; it ends with the block."""
    theirs_in, ours_out = _far(os.pipe())
    ours_in, theirs_out = _far(os.pipe())
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    command = [str(EXECUTABLE), *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    ends: list[Any] = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
    quiet = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=[*ends, *quiet])
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)


def _far(ends: tuple[int, int]) -> tuple[int, int]:
    """Return the ends of a pipe under numbers that 3 and 4, which the browser listens on, do not meet."""
    far = fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 64), fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 64)
    for end in ends:
        os.close(end)
    return far
