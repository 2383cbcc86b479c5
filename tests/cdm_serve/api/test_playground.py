"""The page as a browser shows it, and the files it is made of."""

import ast
import contextlib
import io
import json
import re
import shlex
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import chromium
import httpx
import numpy as np
import pytest
from PIL import Image

SECRET = "0123456789abcdef"
FILES = ("/", "/playground.css", "/playground.js")
IDLE = "document.querySelector('#make').getAttribute('aria-disabled') === null"
LOADED = "document.querySelector('#steps').options.length === 16"


@pytest.mark.parametrize("path", FILES)
def test_its_files(server, path):
    response = server.http.get(path)
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert server.http.head(path).headers["content-length"] == str(len(response.content))
    # Asked for each time, sent only when it is another.
    assert response.headers["cache-control"] == "no-cache"
    again = server.http.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_they_name_nothing_elsewhere_and_no_absolute_path(server):
    for path in FILES:
        text = server.http.get(path).text
        text = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?://|@import|import\(", text)
        assert not re.search(r"""(src=|href=|url\(|fetch\(|address\()\s*["'`]?/""", text)


@pytest.fixture
def browse(tmp_path):
    if chromium.BINARY is None:
        pytest.skip("needs Chromium: apt install chromium")
    pages = []

    def browse(url):
        pages.append(chromium.Page(url, tmp_path / f"browser-{len(pages)}"))
        return pages[-1]

    yield browse
    for page in pages:
        page.close()


def fill(page, **values):
    page.run(
        f"""for (const [id, value] of Object.entries({json.dumps(values)}))
              document.getElementById(id).value = value;
            document.querySelector("#seed").dispatchEvent(new Event("input"));
            document.querySelector("#format").dispatchEvent(new Event("change"));"""
    )


def submit(page):
    page.run("document.querySelector('#form').requestSubmit()")
    page.wait(IDLE)


def press(page, name):
    """The button of that name, at the picture that is described."""
    page.run(
        f"""[...document.querySelectorAll("#details .action")]
              .find(({{ textContent }}) => textContent === {json.dumps(name)}).click()"""
    )


def text(page, id):
    return page.run(f"document.getElementById({json.dumps(id)}).textContent")


def value(page, id):
    return page.run(f"document.getElementById({json.dumps(id)}).value")


def test_pictures_come_with_previews_and_a_waterfall(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    page.run(
        """(() => {
          window.previews = 0;
          new MutationObserver(changes => {
            for (const { target } of changes)
              if (target.classList.contains("partial")) window.previews += 1;
          }).observe(document.querySelector("#frame"), {
            subtree: true, attributeFilter: ["class"],
          });
        })()"""
    )
    fill(page, prompt="a fox's den", steps="8", count="4", seed="7")
    submit(page)
    assert page.run("window.previews") >= 4
    assert page.run("document.querySelectorAll('#frame img[src]:not(.partial)').length") == 4
    assert page.run("document.querySelectorAll('#kept img').length") == 4
    facts = page.run("document.querySelector('#facts').textContent")
    assert re.match(r"64x64 · 8 steps · seed 7 · tiny · PNG, [\d.]+ kB", facts)
    caption = page.run("document.querySelector('#times caption').textContent")
    whole = re.fullmatch(r"([\d.]+) ms in the server, ([\d.]+) ms as seen from here", caption)
    assert float(whole[1]) <= float(whole[2])
    rows = page.run("[...document.querySelectorAll('#times tr')].map(row => row.innerText)")
    assert [row.split()[0] for row in rows] == [
        "queue", "text", "steps", "previews", "decode", "file"
    ]  # fmt: skip
    assert all(row.endswith(" ms") for row in rows)
    # A bar a step, each where it was: one after the other.
    bars = page.run(
        "[...document.querySelectorAll('.track .steps')].map(bar => parseFloat(bar.style.left))"
    )
    assert len(bars) == 8
    assert bars == sorted(bars)
    page.wait("[...document.images].every(({ complete }) => complete)")
    assert page.complaints == []


def test_a_random_seed_is_filled_in_and_copies_make_what_is_shown(browse, server, tmp_path):
    page = browse(server.url)
    page.wait(LOADED)
    prompt = 'a fox\'s "den" $HOME\nat night'
    page.run(f"document.querySelector('#prompt').value = {json.dumps(prompt)}")
    submit(page)
    seed = int(value(page, "seed"))
    submit(page)
    again = int(value(page, "seed"))
    assert seed != again
    wanted = server.picture(prompt, again, 4)
    press(page, "Copy as curl")
    page.wait("document.querySelector('#details .actions [role=status]').textContent === 'copied'")
    command = shlex.split(page.wait("navigator.clipboard.readText()").replace("\\\n", " "))
    assert command[0] == "curl"
    subprocess.run([*command, "--silent", "--fail"], check=True, cwd=tmp_path)
    assert (tmp_path / "picture.png").read_bytes() == wanted
    press(page, "Copy as Python")
    code = page.wait("navigator.clipboard.readText().then(text => text.includes('openai') && text)")
    ast.parse(code)
    exec(compile(code.replace("picture.png", f"{tmp_path}/made.png"), "copied", "exec"), {})
    assert (tmp_path / "made.png").read_bytes() == wanted


def test_what_is_downloaded_is_the_file_and_brings_its_settings_back(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    for kind, suffix in (("png", "png"), ("jpeg", "jpg"), ("webp", "webp")):
        fill(page, prompt="a fox", steps="3", size="96x64", seed="11", format=kind)
        submit(page)
        press(page, "Download")
        name = f"a-fox-11.{suffix}"
        file = page.downloaded(name)
        answer = server.http.post(
            "/v1/images/generations",
            json={"prompt": "a fox", "seed": 11, "num_inference_steps": 3, "size": "96x64"}
            | ({} if kind == "png" else {"output_compression": 90}),
            headers={"accept": f"image/{kind}"},
        )
        assert file == answer.content
        fill(page, prompt="", steps="16", size="64x64", seed="1", format="png")
        if kind == "png":
            page.drop(page.downloads / name)
        else:
            page.choose("#file", page.downloads / name)
        page.wait("document.querySelector('#note').textContent.includes('are back')")
        wanted = ["3", "96x64", "11", kind, "1"]
        assert [value(page, id) for id in ("steps", "size", "seed", "format", "count")] == wanted
        assert page.run("document.querySelector('#random').checked") is False
        assert "but the prompt is not in the file" in text(page, "note")


def test_any_other_picture_is_what_the_next_is_made_of(browse, server, tmp_path):
    page = browse(server.url)
    page.wait(LOADED)
    for name in ("holiday.png", "holiday.jpg", "holiday.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        page.choose("#file", tmp_path / name)
        page.wait(f"document.querySelector('#note').textContent.endsWith(' made of {name}.')")
        assert page.run("document.querySelector('#edit').hidden") is False
    (tmp_path / "cut.png").write_bytes(server.picture("a fox", 7, 1)[:40])
    page.choose("#file", tmp_path / "cut.png")
    page.wait("document.querySelector('#note').textContent.startsWith('cut.png holds no')")
    assert page.complaints == []


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def test_a_picture_is_painted_over_and_varied(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    fill(page, prompt="a fox", seed="7")
    submit(page)
    press(page, "Edit")
    page.wait("!document.querySelector('#edit').hidden")
    fill(page, prompt="an owl", seed="9", strength="0.6")
    page.run("document.querySelector('#strength').dispatchEvent(new Event('input'))")
    assert text(page, "change") == "3 of 4 steps"
    page.drag("#paint", [(0.1, 0.1), (0.1, 0.9)])
    submit(page)
    assert "strength 0.6 · seed 9" in text(page, "facts")
    assert text(page, "times").count("image") == 1
    press(page, "Download")
    found, fox = pixels(page.downloaded("an-owl-9.png")), pixels(server.picture("a fox", 7, 4))
    changed = (found != fox).any(axis=(0, 2))
    assert changed[5:8].all() and not changed[16:].any()
    press(page, "Copy as curl")
    copied = page.wait(
        "navigator.clipboard.readText().then(text => text.includes('edits') && text)"
    )
    assert "-F image=@image.png -F mask=@mask.png" in copied
    # Its settings bring back picture and paint, and with them the same file.
    press(page, "Use settings")
    page.wait("!document.querySelector('#edit').hidden")
    submit(page)
    press(page, "Vary")
    page.wait("document.querySelectorAll('#kept img').length === 4")
    page.wait(IDLE)
    assert "strength 0.5" in text(page, "facts")
    page.run("document.querySelector('#unedit').click()")
    submit(page)
    assert "strength" not in text(page, "facts")
    assert page.complaints == []


def test_pictures_are_kept_over_a_reload_until_they_are_deleted(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    fill(page, prompt="an owl", count="3", seed="21", steps="2")
    submit(page)
    fill(page, prompt="not made", steps="9")
    page.reload()
    page.wait("document.querySelectorAll('#kept img').length === 3")
    page.wait("document.querySelector('#prompt').value === 'an owl'")
    page.wait(LOADED)
    assert value(page, "steps") == "2"
    assert page.run("document.querySelectorAll('#frame .tile').length") == 1
    page.wait(
        "[...document.images].every(({ complete, naturalWidth, src }) => !src || naturalWidth)"
    )
    press(page, "Delete")
    page.wait("document.querySelectorAll('#kept img').length === 2")
    page.reload()
    page.wait("document.querySelectorAll('#kept img').length === 2")
    page.run("window.confirm = () => true; document.querySelector('#clear').click()")
    page.wait("document.querySelector('#gallery').hidden")
    page.reload()
    page.wait(LOADED)
    assert page.run("document.querySelector('#gallery').hidden && !document.querySelector('.tile')")


def test_a_picture_is_looked_at_with_the_keyboard_alone(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    page.run("document.querySelector('#prompt').focus()")
    fill(page, prompt="a fox", count="3", seed="31")
    page.press("Enter", control=True)
    page.wait("document.querySelectorAll('.tile:enabled').length === 3")
    page.wait(IDLE)
    page.run("document.querySelector('.tile').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#lightbox').open")
    shows = "document.querySelector('#lightbox-facts').textContent.match(/seed \\d+/)[0]"
    assert page.run(shows) == "seed 31"
    for key, seed in (
        ("ArrowRight", 32),
        ("ArrowRight", 33),
        ("ArrowRight", 33),
        ("ArrowLeft", 32),
    ):
        page.press(key)
        assert page.run(shows) == f"seed {seed}"
    zoomed = "document.querySelector('#zoom').getAttribute('aria-pressed')"
    page.run("document.querySelector('#zoom').focus()")
    page.press("Enter")
    assert page.run(zoomed) == "true"
    page.press("ArrowRight")
    assert page.run(shows) == "seed 32"
    page.run("document.querySelector('#zoom').click()")
    assert page.run(zoomed) == "false"
    page.press("Escape")
    page.wait("!document.querySelector('#lightbox').open")
    # The focus is where it was, and the picture that was looked at last is the one described.
    assert page.run("document.activeElement === document.querySelector('.tile')")
    assert "seed 32" in page.run("document.querySelector('#facts').textContent")
    press(page, "Use settings")
    assert value(page, "seed") == "32"
    assert value(page, "count") == "1"
    submit(page)
    assert value(page, "seed") == "32"


@pytest.fixture
def proxied(server):
    """Put the server below ``/studio`` of a proxy, which changes the parts of its answers."""

    def proxied(changed=lambda part: part):
        class Proxy(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.removeprefix("/studio")
                if path == self.path:
                    self.send_error(404)
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {"content-type": self.headers.get("content-type", "text/plain")}
                with httpx.stream(
                    self.command, server.url + path, content=body, headers=headers
                ) as answer:
                    self.send_response(answer.status_code)
                    self.send_header("content-type", answer.headers["content-type"])
                    self.end_headers()
                    for part in answer.iter_raw():
                        self.wfile.write(changed(part))

            do_POST = do_GET

            def log_message(self, *arguments):
                pass

        proxy = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Proxy))
        threading.Thread(target=proxy.serve_forever).start()
        stack.callback(proxy.shutdown)
        return f"http://127.0.0.1:{proxy.server_address[1]}/studio/"

    with contextlib.ExitStack() as stack:
        yield proxied


def test_it_works_below_a_path_prefix(browse, proxied):
    prefixed = proxied()
    page = browse(prefixed)
    page.wait(LOADED)
    submit(page)
    assert page.run("document.querySelectorAll('#kept img').length") == 1
    press(page, "Copy as curl")
    assert f"{prefixed}v1/images/generations" in page.wait("navigator.clipboard.readText()")
    assert page.complaints == []


def test_a_model_that_edits_asks_for_a_picture_first(browse, server, proxied, tmp_path):
    (tmp_path / "fox.png").write_bytes(server.picture("a fox", 7, 4))
    no, yes = (f'"needs_picture":{word}'.encode() for word in ("false", "true"))
    page = browse(proxied(lambda part: part.replace(no, yes)))
    page.wait(LOADED)
    hidden = "['ask-picture', 'edit', 'examples'].map(id => document.getElementById(id).hidden)"
    focused = "document.activeElement.id"
    assert page.run(hidden) == [False, True, True]
    assert value(page, "prompt") == ""
    fill(page, prompt="an owl", seed="9", steps="2")
    page.run("document.querySelector('#prompt').focus()")
    page.press("Enter", control=True)
    assert text(page, "error") == "Choose a picture first."
    assert page.run(focused) == "choose-picture"
    # Made here or not: with such a model it is what the next one is made of.
    page.press("Enter")
    page.choose("#file", tmp_path / "fox.png")
    page.wait("!document.querySelector('#edit').hidden")
    assert page.run(hidden) == [True, False, True]
    assert (value(page, "strength"), page.run(focused)) == ("1", "prompt")
    assert text(page, "error") == ""
    page.press("Enter", control=True)
    page.wait("document.querySelectorAll('#kept img').length === 1")
    page.wait(IDLE)
    assert "2 steps · strength 1 · seed 9" in text(page, "facts")
    page.run("document.querySelector('#unedit').click()")
    assert page.run(hidden) == [False, True, True]
    assert page.run(focused) == "choose-picture"
    press(page, "Edit")
    page.wait("!document.querySelector('#edit').hidden")
    page.run("document.querySelector('#unedit').click()")
    page.drop(tmp_path / "fox.png")
    page.wait("!document.querySelector('#edit').hidden")
    assert page.complaints == []


def test_the_form_follows_the_model(browse, proxied):
    def two(part):
        if not part.startswith(b'{"object":"list"'):
            return part
        models = json.loads(part)
        (tiny,) = models["data"]
        wide = tiny | {"id": "wide", "sizes": ["96x64"], "default_size": "96x64"}
        none = tiny | {"id": "none", "edits": False}
        models["data"] += [wide | {"default_steps": 2}, none]
        return json.dumps(models).encode()

    page = browse(proxied(two))
    page.wait(LOADED)
    fill(page, steps="1")
    submit(page)
    press(page, "Edit")
    page.wait("!document.querySelector('#edit').hidden")
    choose = (
        "document.querySelector('#model').value = %r; document.querySelector('#model').onchange()"
    )
    page.run(choose % "wide")
    sides = "[document.querySelector('#paint').width, document.querySelector('#paint').height]"
    assert page.run(sides) == [96, 64]
    assert text(page, "change") == "2 of 2 steps"
    page.run(choose % "none")
    assert page.run("document.querySelector('#edit').hidden")
    assert page.run("[...document.querySelectorAll('.edits')].every(({ hidden }) => hidden)")
    # Edited by the model that is chosen now, not by the one that made it.
    page.run(choose % "wide")
    press(page, "Edit")
    page.wait("!document.querySelector('#edit').hidden")
    assert value(page, "model") == "wide"
    assert page.complaints == []


def test_kept_pictures_wait_for_the_models(browse, proxied):
    away = threading.Event()

    def changed(part):
        empty = away.is_set() and part.startswith(b'{"object":"list"')
        return b'{"object":"list","data":[]}' if empty else part

    page = browse(proxied(changed))
    page.wait(LOADED)
    submit(page)
    away.set()
    page.reload()
    page.wait("document.querySelector('#about').textContent === 'the model is being loaded…'")
    for name in ("Use settings", "Edit", "Vary"):
        page.run("document.querySelector('#note').textContent = ''")
        press(page, name)
        assert text(page, "note") == "the model is being loaded…"
    away.clear()
    page.wait(LOADED)
    press(page, "Use settings")
    assert text(page, "note").endswith(" are back.")
    assert page.complaints == []


def test_an_answer_about_the_models_that_comes_too_late_counts_no_more(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    page.run(
        """(() => {
          const { fetch } = window;
          window.fetch = () => {
            window.fetch = fetch;
            return new Promise(resolve => {
              window.late = () => resolve(new Response("{}", { status: 503 }));
            });
          };
          for (const _ of [1, 2]) document.querySelector("#access").onsubmit(new Event("submit"));
        })()"""
    )
    page.wait("document.activeElement.id === 'prompt'")
    page.run("window.late()")
    submit(page)
    assert text(page, "error") == ""
    assert page.run("document.querySelectorAll('#kept img').length") == 1


def test_no_file_is_held_in_memory_for_nothing(browse, server, tmp_path):
    page = browse(server.url)
    page.wait(LOADED)
    page.run(
        """(() => {
          window.held = new Set();
          const { createObjectURL, revokeObjectURL } = URL;
          URL.createObjectURL = blob => {
            const url = createObjectURL(blob);
            window.held.add(url);
            return url;
          };
          URL.revokeObjectURL = url => { window.held.delete(url); revokeObjectURL(url); };
        })()"""
    )
    fill(page, steps="16", count="2")
    submit(page)
    assert page.run("window.held.size") == 2
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    page.choose("#file", tmp_path / "holiday.png")
    page.wait("!document.querySelector('#edit').hidden")
    press(page, "Edit")
    fill(page, steps="2", count="1")
    submit(page)
    assert page.run("window.held.size") == 3
    press(page, "Delete")
    page.wait("document.querySelectorAll('#kept img').length === 2")
    assert page.run("window.held.size") == 2


def test_a_browser_that_refuses_things_is_told_of(browse, server, tmp_path):
    page = browse(server.url)
    page.wait(LOADED)
    fill(page, steps="1")
    submit(page)
    page.run(
        """(() => {
          const refuse = name => () => { throw new DOMException("no", name); };
          IDBObjectStore.prototype.add = refuse("QuotaExceededError");
          IDBObjectStore.prototype.delete = refuse("UnknownError");
          Storage.prototype.setItem = refuse("QuotaExceededError");
          File.prototype.arrayBuffer = async () => refuse("NotFoundError")();
          navigator.clipboard.writeText = async () => refuse("NotAllowedError")();
          document.execCommand = () => false;
        })()"""
    )
    fill(page, count="2")
    submit(page)
    assert text(page, "error") == ""
    assert page.run("document.querySelectorAll('#kept img').length") == 3
    assert text(page, "gallery-title").endswith("the storage is full")
    press(page, "Copy as curl")
    said = "document.querySelector('#details .actions [role=status]').textContent"
    page.wait(f"{said} === 'the browser lets nothing be copied'")
    oldest = "document.querySelector('#kept li:last-child button')"
    page.run(f"{oldest}.focus()")
    page.run(f"{oldest}.click()")
    page.run("[...document.querySelectorAll('#lightbox .action')].at(-1).click()")
    page.wait("document.querySelector('#note').textContent.startsWith('The browser could not')")
    # The thumbnail that had opened it is gone, and the focus with it.
    page.run("document.querySelector('#close').click()")
    page.wait("document.activeElement.id === 'make'")
    (tmp_path / "gone.png").write_bytes(b"")
    page.choose("#file", tmp_path / "gone.png")
    page.wait("document.querySelector('#note').textContent.startsWith('gone.png holds no')")
    page.run("document.querySelector('#access').onsubmit(new Event('submit'))")
    page.wait("document.querySelector('#note').textContent.startsWith('The browser keeps no key')")
    assert page.complaints == []


def test_what_is_asked_for_while_pictures_are_made_waits(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    fill(page, prompt="a fox", steps="1")
    submit(page)
    fill(page, prompt="an owl", steps="16", count="10", size="96x64")
    page.run("document.querySelector('#form').requestSubmit()")
    page.run("document.querySelector('#kept button').click()")
    page.run("document.querySelector('#lightbox .action').click()")
    assert text(page, "note").startswith("Other pictures are being made")
    assert page.run("document.querySelector('#lightbox').open") is False
    assert value(page, "prompt") == "an owl"
    page.run("document.querySelector('#stop').click()")
    page.wait(IDLE)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_its_colours_can_be_told_apart(server):
    """WCAG 2.2: text 4.5, edges of fields 3."""
    css = server.http.get("/playground.css").text
    colours = dict(re.findall(r"--([a-z-]+): light-dark\((#\w{6}, #\w{6})\)", css))
    needed = dict.fromkeys(("text", "quiet", "accent", "bad"), 4.5) | {"edge": 3.0}
    pairs = [(name, ground) for name in needed for ground in ("page", "card")]
    for name, ground in [*pairs, ("on-accent", "accent")]:
        for one, other in zip(colours[name].split(", "), colours[ground].split(", "), strict=True):
            low, high = sorted((luminance(one), luminance(other)))
            assert (high + 0.05) / (low + 0.05) >= needed.get(name, 4.5), (name, one, other)


def test_stop_escape_and_errors(browse, server):
    page = browse(server.url)
    page.wait(LOADED)
    for leave in ("document.querySelector('#stop').click()", None):
        fill(page, steps="16", count="10", size="96x64", seed="1")
        page.run("document.querySelector('#form').requestSubmit()")
        assert page.run("document.querySelector('#stop').hidden") is False
        if leave is None:
            page.press("Escape")
        else:
            page.run(leave)
        page.wait("document.querySelector('#status').textContent === 'stopped'")
        page.wait(IDLE)
        assert page.run("document.querySelector('#stop').hidden")
        assert page.run("document.querySelectorAll('.tile.waiting').length") == 0
    page.run("document.querySelector('#prompt').value = '\\0'")
    submit(page)
    assert "U+0000" in text(page, "error")


@pytest.mark.slow
def test_it_comes_back_by_itself_when_the_server_has_room(browse, start, server):
    gateway = start("--triton", server.triton_address(), "--requests-per-minute", "20")
    gateway.wait_ready()
    page = browse(gateway.url)
    page.wait(LOADED)
    while gateway.generate(prompt="a fox", num_inference_steps=1).status_code == 200:
        pass
    page.run("document.querySelector('#form').requestSubmit()")
    page.wait("document.querySelector('#status').textContent.endsWith('Trying again in')")
    assert "more than 20 requests a minute" in text(page, "status")
    page.wait("/^[0-3]\\.\\d s$/.test(document.querySelector('#timer').textContent)")
    page.wait("document.querySelectorAll('#kept img').length === 1")
    assert text(page, "error") == ""
    # And Stop ends the waiting.
    page.wait(IDLE)
    while gateway.generate(prompt="a fox", num_inference_steps=1).status_code == 200:
        pass
    page.run("document.querySelector('#form').requestSubmit()")
    page.wait("document.querySelector('#status').textContent.endsWith('Trying again in')")
    page.run("document.querySelector('#stop').click()")
    page.wait("document.querySelector('#status').textContent === 'stopped'")
    assert gateway.interrupt() == 0


def test_a_prompt_that_is_in_the_file_comes_back_too(browse, start, server, tmp_path):
    gateway = start("--triton", server.triton_address(), "--embed-prompt")
    gateway.wait_ready()
    page = browse(gateway.url)
    page.wait(LOADED)
    prompt = 'a {"fox"} in 雪,\nné 🦊'
    for kind in ("png", "jpeg", "webp"):
        job = {"prompt": prompt, "seed": 7, "num_inference_steps": 1}
        headers = {"accept": f"image/{kind}"}
        file = tmp_path / f"fox.{kind}"
        file.write_bytes(
            gateway.http.post("/v1/images/generations", json=job, headers=headers).content
        )
        page.run("document.querySelector('#prompt').value = ''")
        page.choose("#file", file)
        page.wait(f"document.querySelector('#note').textContent.includes('{file.name} are back.')")
        assert value(page, "prompt") == prompt
    assert gateway.interrupt() == 0


@pytest.mark.slow  # the line has to be some seconds long
def test_the_place_in_the_line_is_shown(browse, start, server):
    gateway = start("--triton", server.triton_address(), "--queue-seconds", "600")
    gateway.wait_ready()
    page = browse(gateway.url)
    page.wait(LOADED)
    fill(page, steps="16", count="10", size="96x64")
    job = {"prompt": "a fox", "n": 10, "num_inference_steps": 16, "size": "96x64"}
    with ThreadPoolExecutor(100) as pool:
        while gateway.metric("cdm_serve_queue_wait_seconds") < 4:
            pool.submit(gateway.generate, **job)
        page.run("document.querySelector('#form').requestSubmit()")
        status = "document.querySelector('#status').textContent"
        page.wait(f"/^waiting, \\d\\d+ pictures before$/.test({status})")
        page.wait(f"{status} === '10 pictures'")
    assert gateway.interrupt() == 0


def test_a_key_is_asked_for_and_kept_as_long_as_is_wanted(browse, start, server, monkeypatch):
    monkeypatch.setenv("CDM_SERVE_API_KEYS", SECRET)
    gateway = start("--triton", server.triton_address())
    gateway.wait_ready()
    page = browse(gateway.url)
    page.wait("!document.querySelector('#access').hidden")
    kept = "[sessionStorage, localStorage].map(storage => storage.length)"
    enter = "document.querySelector('#access').requestSubmit()"
    page.run("document.querySelector('#key').value = 'wrong'")
    page.run(enter)
    page.wait("document.querySelector('#about').textContent.includes('missing or wrong')")
    page.run(f"document.querySelector('#key').value = {SECRET!r}")
    page.run(enter)
    page.wait(LOADED)
    assert page.run(kept) == [1, 0]
    page.reload()
    page.wait(LOADED)
    submit(page)
    assert page.run("document.querySelectorAll('#kept img').length") == 1
    press(page, "Copy as curl")
    assert "Bearer $CDM_API_KEY" in page.wait("navigator.clipboard.readText()")
    page.run("document.querySelector('#remember').checked = true")
    page.run(enter)
    page.wait(f"({kept})[1] === 1")
    page.run("document.querySelector('#remember').checked = false")
    page.run(enter)
    page.wait(f"({kept})[1] === 0")
    assert gateway.interrupt() == 0


def test_every_control_has_a_name(browse, server):
    """As a screen reader would read it: the browser's own accessibility tree."""
    page = browse(server.url)
    page.wait(LOADED)
    fill(page, count="2", format="jpeg")
    submit(page)
    page.run("document.querySelector('.tile').click()")
    for closed in (False, True):
        if closed:
            page.press("Escape")
        controls = page.controls()
        assert len(controls) > 5
        assert all(name for _, name in controls), controls


@pytest.mark.parametrize(("width", "touch"), [(390, True), (820, True), (1440, False)])
def test_it_fits_every_screen(browse, server, width, touch):
    page = browse(server.url)
    page.look(width, 800, touch=touch)
    page.wait(LOADED)
    fill(page, prompt="a fox " * 40, count="9", steps="1")
    submit(page)
    assert page.run("document.documentElement.scrollWidth") <= width
    # What was asked for is in sight when it comes, also below a tall form.
    top = page.run("document.querySelector('#frame').getBoundingClientRect().top")
    assert 0 <= top < 700
    for scheme in ("light", "dark"):
        page.look(width, 800, scheme=scheme, touch=touch)
        colour = page.run("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", colour))) < 128) == (scheme == "dark")
    page.click(".tile")
    box = "document.querySelector('%s').getBoundingClientRect()"
    assert page.run(f"{box % '#large'}.height") > 200
    assert page.run(f"{box % '.bar'}.bottom") <= 800
    page.click("#large")
    assert page.run("document.querySelector('#stage').scrollWidth") > width
