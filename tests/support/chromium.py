"""A headless Chromium for the tests of pages, controlled over two pipes with its DevTools protocol: no port, driver or package.

``python -m tests.support.chromium PAGE FOLDER`` takes screenshots of a page at three widths, light and dark.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS_PX = (360, 768, 1440)
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars")


class Chromium:
    """One browser with one page. Its complaints and requests are kept.

    Attributes:
        complaints: console errors and warnings, uncaught exceptions, violations of the page's policy.
        requests: requested addresses, without data URLs.
    """

    def __init__(self, timeout_s: float = 120) -> None:
        assert BINARY is not None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._timeout_s, self._number, self._session, self._rest = timeout_s, 0, None, b""
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        (there, self._write), (self._read, back) = os.pipe(), os.pipe()
        # The browser reads the protocol from descriptor 3 and writes to 4.
        line = f'exec "$0" "$@" 3<&{there} 4>&{back}'
        words = [BINARY, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank"]
        self._browser = subprocess.Popen(
            ["bash", "-c", line, *words],
            pass_fds=(there, back),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(there)
        os.close(back)
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and remove its profile."""
        os.killpg(self._browser.pid, signal.SIGKILL)
        self._browser.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> Any:
        """Return the answer to one message of the protocol."""
        self._number += 1
        session = {} if self._session is None else {"sessionId": self._session}
        data = json.dumps({"id": self._number, "method": method, "params": parameters, **session}).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while (message := self._message()).get("id") != self._number:
            self._note(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def open(self, path: Path, *, width_px: int = 1440, height_px: int = 900, is_dark: bool = False) -> None:
        """Load a file, and wait until it is complete."""
        self.call("Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if is_dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + self._timeout_s
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, *, most_px: int = 16_000) -> None:
        """Write the whole page as PNG, from its top."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most_px), "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "the browser ended or does not answer"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(about["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(about["entry"]["text"])
            case "Network.requestWillBeSent" if not about["request"]["url"].startswith("data:"):
                self.requests.append(about["request"]["url"])


def main(page: str, folder: str) -> None:
    """Take screenshots of a page."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    browser = Chromium()
    try:
        for width_px in WIDTHS_PX:
            for is_dark in (False, True):
                path = Path(folder) / f"{Path(page).stem}-{width_px}-{'dark' if is_dark else 'light'}.png"
                browser.open(Path(page), width_px=width_px, is_dark=is_dark)
                browser.screenshot(path, most_px=9000)
                print(path)
    finally:
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
