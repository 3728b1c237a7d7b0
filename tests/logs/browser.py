"""Chromium, driven over two pipes by its own protocol: nothing has to be installed but the browser itself."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio",
             "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe")  # fmt: skip
# The browser reads from 3 and writes to 4.
_START = """
import os, sys
for number, wanted in zip(sys.argv[1:3], (100, 101)):
    os.dup2(int(number), wanted)
os.dup2(100, 3)
os.dup2(101, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page. What went wrong in it is in `errors`, what it asked for in `requests`."""

    def __init__(self, profile, patience=30.0):
        (to_read, self._to), (self._from, to_write) = os.pipe(), os.pipe()
        self._patience, self._bytes, self._count, self.errors, self.requests = patience, b"", 0, [], []
        os.set_blocking(self._from, False)
        self._session = None
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(to_read), str(to_write), CHROMIUM, *_SWITCHES,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        try:
            self._session = self._until(self._attached)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and the processes that it has started
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, path, width=1440, height=900, dark=False):
        """Open a file, and wait until it is there and all its figures are drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 700)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self._until(lambda: self.run("document.readyState === 'complete' && location.protocol === 'file:'"))

    def run(self, code):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def shoot(self, path, whole=False):
        """Take a picture of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def point_at(self, x, y):
        """Move the mouse there, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def call(self, method, **options):
        """One call of the protocol."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        text = json.dumps({"id": self._count, "method": method, "params": options, **session})
        os.write(self._to, text.encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._count:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message.get("method"), message.get("params"))

    def _note(self, event, what):
        if event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(what["exceptionDetails"]["exception"].get("description", "an exception"))
        elif event == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.errors.append(str([arg.get("value", arg.get("description")) for arg in what["args"]]))
        elif event == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.errors.append(what["entry"]["text"])

    def _next(self):
        end = time.monotonic() + self._patience
        while b"\0" not in self._bytes:
            assert time.monotonic() < end, "chromium does not answer"
            try:
                self._bytes += os.read(self._from, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
        text, _, self._bytes = self._bytes.partition(b"\0")
        return json.loads(text)

    def _attached(self):
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        if pages:
            return self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        return None

    def _until(self, question):
        end = time.monotonic() + self._patience
        while not (answer := question()):
            assert time.monotonic() < end, "chromium does not get there"
            time.sleep(0.05)
        return answer
