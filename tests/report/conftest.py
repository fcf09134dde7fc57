"""A real browser for tests: headless Chromium, spoken to in the DevTools protocol over two pipes (no port, no network)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

TIMEOUT_S = 60.0


@dataclass
class Page:
    """What the browser saw of one page."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    overflow_px: int = 0
    background: str = ""
    screenshot: bytes = b""


class Browser:
    """One browser process. Messages are JSON, each ended by a NUL (``--remote-debugging-pipe``)."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands = commands
        self._answers = answers
        self._events: list[dict[str, Any]] = []
        self._count = 0

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def look(self, url: str, *, width: int, height: int, scheme: str) -> Page:
        """Load a page in a window of that width and colour scheme."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        self.call(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.call("Page.navigate", session, url=url)
        deadline = time.monotonic() + TIMEOUT_S
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            assert time.monotonic() < deadline, "the page did not load in time"
            self._events.append(self._read())
        page = Page(
            overflow_px=self._evaluate(session, "document.documentElement.scrollWidth - document.documentElement.clientWidth"),
            background=self._evaluate(session, "getComputedStyle(document.body).backgroundColor"),
        )
        image = self.call("Page.captureScreenshot", session, format="png", captureBeyondViewport=True)
        page.screenshot = base64.b64decode(image["data"])
        for event in self._events:
            name, params = event.get("method"), event.get("params", {})
            if name == "Network.requestWillBeSent":
                page.requests.append(params["request"]["url"])
            elif name in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                page.complaints.append(json.dumps(params))
        self.call("Target.closeTarget", targetId=target)
        return page

    def _evaluate(self, session: str, expression: str) -> Any:
        return self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]["value"]

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        answer: dict[str, Any] = json.loads(message)
        return answer


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no chromium on this machine; `make system-deps` installs it")
    profile: Path = tmp_path_factory.mktemp("chromium")
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    # The browser reads commands from descriptor 3 and answers on 4; sh puts the pipes there.
    script = f'exec "$@" 3<&{command_read} 4>&{answer_write}'
    argv = ["bash", "-c", script, "bash", executable, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    with (profile / "stderr").open("wb") as log:
        process = subprocess.Popen(argv, pass_fds=(command_read, answer_write), stdout=log, stderr=log)
        os.close(command_read)
        os.close(answer_write)
        with os.fdopen(command_write, "wb") as commands, os.fdopen(answer_read, "rb") as answers:
            running = Browser(commands, answers)
            try:
                yield running
                running.call("Browser.close")
                process.wait(TIMEOUT_S)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
