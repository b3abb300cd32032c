"""Drives Chromium without a window over the pipes of its DevTools protocol."""

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


class Browser:
    """Chromium without a window, over the pipes of its DevTools protocol."""

    def __init__(self, profile):
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()
        arguments = (
            "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --disable-dev-shm-usage "
            "--no-first-run --disable-background-networking --remote-debugging-pipe"
        )
        # it reads file 3 and writes file 4
        shell = f'exec "$0" {arguments} --user-data-dir="$1" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, BROWSER, str(profile)],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.events, self.sent, self.buffer, self.session = [], 0, b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def read(self, seconds=20):
        until = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.back], [], [], max(0, until - time.monotonic()))
            part = os.read(self.back, 1 << 20) if ready else b""
            assert part, f"{BROWSER} said nothing for {seconds} s"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url, width):
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.events.clear()
        self.ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def evaluate(self, script):
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, script, seconds=30):
        """Evaluate a script until it holds."""
        until = time.monotonic() + seconds
        while not (found := self.evaluate(script)):
            text = self.evaluate("document.body.innerText")
            assert time.monotonic() < until, f"never: {script}\n{text}"
            time.sleep(0.05)
        return found

    def upload(self, selector, path):
        """Choose a file in an input of type file."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def type(self, selector, text):
        """Replace the text of an input, and press Enter."""
        self.evaluate(f"document.querySelector({selector!r}).select()")
        self.ask("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **key)

    def complaints(self):
        """What a console would show: exceptions, errors, and what the page's policy refused."""
        self.evaluate("0")  # events sent until now have arrived before its answer
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event for event in self.events if event["method"] in told]

    def screenshot(self):
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            return np.asarray(image.convert("L"))

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.session = None
            self.ask("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to)
        os.close(self.back)


@contextlib.contextmanager
def started_browser(profile):
    """Yield a browser with a profile folder of its own; skip the test if none is installed."""
    if not BROWSER:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
