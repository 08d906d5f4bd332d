"""Headless Chromium, driven by the W3C WebDriver protocol: JSON over HTTP to Debian's chromedriver."""

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from typing import Any

CHROMEDRIVER = shutil.which("chromedriver")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for an element's number

KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Down": "\ue015", "Home": "\ue011", "End": "\ue010"}
"""Keys that write no character, as the protocol names them."""

_OPTIONS = {
    "args": [
        "--headless=new",
        "--no-sandbox",  # which Chromium demands of root, as tests in a container are
        "--disable-dev-shm-usage",  # /dev/shm is small there
        "--disable-gpu",
        "--window-size=1280,800",
    ]
}


class Browser:
    """One window. Use it in a `with`, which ends the processes."""

    def __enter__(self) -> "Browser":
        self._process = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, encoding="utf-8")
        port = next(
            found[1] for line in self._process.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        self._session = f"http://127.0.0.1:{port}/session"
        wanted = {"browserName": "chrome", "goog:chromeOptions": _OPTIONS, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session += "/" + self._do("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._do("", method="DELETE")
        finally:
            self._process.terminate()
            self._process.communicate()

    def _do(self, path: str, content: Any = None, method: str = "POST") -> Any:
        sent = None if method != "POST" else json.dumps(content or {}).encode()
        request = urllib.request.Request(
            self._session + path, sent, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"the browser refused {path}: {json.load(error)['value']['message']}") from error

    def open(self, path: Any, place: str = "") -> None:
        """Opens a file without a server, at a `#place`, and waits until it has loaded."""
        self._do("/url", {"url": "about:blank"})  # else another place in an open page is no load
        self._do("/url", {"url": path.as_uri() + place})

    def run(self, script: str, *words: Any) -> Any:
        """What a function with this body returns, in the page; a promise is waited for."""
        return self._do("/execute/sync", {"script": script, "args": list(words)})

    def press(self, *keys: str) -> None:
        """Presses and lets go of keys one after the other, and waits for the next frame."""
        strokes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": what, "value": key} for key in strokes for what in ("keyDown", "keyUp")]
        self._do("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})
        self.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def click(self, selector: str) -> None:
        """Clicks in the middle of the first element that a selector finds."""
        found = self._do("/element", {"using": "css selector", "value": selector})
        self._do(f"/element/{found[_ELEMENT]}/click")

    def errors(self) -> list[str]:
        """What the page's scripts and its security policy complained about since the last question."""
        return [line["message"] for line in self._do("/se/log", {"type": "browser"})]

    def chrome(self, command: str, **parameters: Any) -> Any:
        """A command of Chrome's own protocol, for example to emulate a phone."""
        return self._do("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._do("/screenshot", method="GET"))
