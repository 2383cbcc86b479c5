"""A headless Chromium, driven over its DevTools pipe: enough to use a page and look at it."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("google-chrome")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


class Page:
    """One page; leave it with ``close``."""

    def __init__(self, url: str, folder: Path, width: int = 1000, height: int = 760) -> None:
        assert BINARY is not None
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Chromium takes commands from descriptor 3 and answers on 4.
        command = [
            "bash",  # dash knows no descriptor above 9
            "-c",
            f'exec "$0" "$@" 3<&{commands} 4>&{answers}',
            BINARY,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.complaints: list[str] = []
        self.downloads = folder / "downloads"
        self._call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads)
        )
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self._call("Browser.grantPermissions", permissions=permissions)
        targets = self._call("Target.getTargets")["targetInfos"]
        (target,) = [each for each in targets if each["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setFocusEmulationEnabled", enabled=True)
        self._call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> Any:
        """Its value, once that is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"{expression} never came true"
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click with the mouse, as a person does: only then a page may do some things."""
        x, y = self.run(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{ block: "center" }});
              const box = element.getBoundingClientRect();
              return [box.left + box.width / 2, box.top + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, selector: str, path: list[tuple[float, float]]) -> None:
        """Move over an element with the button held; places are parts of its width and height."""
        left, top, width, height = self.run(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{ block: "center" }});
              const box = element.getBoundingClientRect();
              return [box.left, box.top, box.width, box.height];
            }})()"""
        )
        places = [(left + x * width, top + y * height) for x, y in path]
        for kind, (x, y) in [
            ("mousePressed", places[0]),
            *(("mouseMoved", place) for place in places),
            ("mouseReleased", places[-1]),
        ]:
            held = {"button": "left", "buttons": 1, "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def controls(self) -> list[tuple[str, str]]:
        """Role and accessible name of everything that can have the focus."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if node.get("role", {}).get("value") != "RootWebArea"
            and any(each["name"] == "focusable" for each in node.get("properties", []))
        ]

    def look(self, width: int, height: int, *, scheme: str = "light", touch: bool = False) -> None:
        """Show the page at this size and in this colour scheme, on a touch screen or not."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        self._call("Emulation.setTouchEmulationEnabled", enabled=touch)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str, *, control: bool = False) -> None:
        """Press and release a key by its DOM name."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=KEYS[key],
                modifiers=2 * control,
                **text,
            )

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an input of that type."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def downloaded(self, name: str, seconds: float = 60.0) -> bytes:
        """A downloaded file, once it is there."""
        deadline = time.monotonic() + seconds
        while not (self.downloads / name).exists():
            assert time.monotonic() < deadline, f"{name} never came"
            time.sleep(0.02)
        return (self.downloads / name).read_bytes()

    def drop(self, file: Path) -> None:
        """Drag a file over the page and let it fall."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._call("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)

    def reload(self) -> None:
        """Load the page again."""
        self.run("window.old = true")
        self._call("Page.reload")
        self.wait("window.old === undefined && document.readyState === 'complete'")

    def screenshot(self, file: Path) -> None:
        """The visible part, as PNG."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _call(self, method: str, **params: object) -> Any:
        number = next(self._ids)
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self) -> Any:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 16)
            assert part, "Chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))
        entry = event.get("params", {}).get("entry", {})
        if event.get("method") == "Log.entryAdded" and entry["level"] == "error":
            self.complaints.append(entry["text"])
