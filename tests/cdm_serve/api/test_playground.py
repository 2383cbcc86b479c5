"""The page as a browser shows it."""

import ast
import json
import re
import shlex
import subprocess

import chromium
import pytest

SECRET = "0123456789abcdef"


def test_the_page_needs_nothing_from_elsewhere(server):
    response = server.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    page = response.text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page)
    for route in re.findall(r"""["'](/[a-z0-9/]+)["']""", page):
        assert server.http.get(route).status_code in (200, 405), route


@pytest.fixture
def browse(tmp_path):
    if chromium.BINARY is None:
        pytest.skip("needs Chromium: apt install chromium")
    pages = []

    def browse(url):
        pages.append(chromium.Page(url, tmp_path))
        return pages[-1]

    yield browse
    for page in pages:
        page.close()


def test_pictures_come_with_previews_timings_and_history(browse, server, tmp_path):
    page = browse(server.url)
    page.wait("document.querySelector('#steps').options.length === 16")
    page.run(
        """(() => {
          window.previews = 0;
          new MutationObserver(changes => {
            for (const { target } of changes)
              if (target.classList.contains("partial")) window.previews += 1;
          }).observe(document.querySelector("#frame"), {
            subtree: true, attributeFilter: ["class"],
          });
          const set = (id, value) => { document.getElementById(id).value = value; };
          set("prompt", "a fox's den"); set("steps", "8"); set("count", "4"); set("seed", "7");
          document.querySelector("#form").requestSubmit();
        })()"""
    )
    page.wait("document.querySelectorAll('#history img').length === 4")
    assert page.run("window.previews") >= 4
    assert page.run("document.querySelectorAll('#frame img:not(.partial)').length") == 4
    caption = page.wait("document.querySelector('#caption').textContent")
    assert re.search(r"64x64 · 8 steps · seed (7|8|9|10) · 4 images · \d+ ms", caption)
    legend = page.run("document.querySelector('#legend').textContent")
    assert re.search(r"queue [\d.]+text [\d.]+steps [\d.]+", legend)
    page.wait("[...document.images].every(image => image.complete && image.naturalWidth === 64)")
    page.screenshot(tmp_path / "page.png")
    page.run("document.querySelector('#history button:last-child').click()")
    assert page.run("document.querySelectorAll('#frame img').length") == 1
    assert page.complaints == []


def test_what_is_copied_makes_the_picture(browse, server, tmp_path):
    page = browse(server.url)
    page.wait("document.querySelector('#steps').options.length === 16")
    page.run(
        """(() => {
          document.querySelector("#prompt").value = "a fox's \\"den\\" $HOME\\nat night";
          document.querySelector("#seed").value = "7";
        })()"""
    )
    prompt = 'a fox\'s "den" $HOME\nat night'
    wanted = server.picture(prompt, 7, 4)
    command = shlex.split(page.run("asCurl()").replace("\\\n", " "))
    assert command[0] == "curl"
    subprocess.run([*command, "--silent", "--fail"], check=True, cwd=tmp_path)
    assert (tmp_path / "picture.png").read_bytes() == wanted
    code = page.run("asPython()")
    ast.parse(code)
    exec(compile(code.replace("picture-", f"{tmp_path}/made-"), "copied", "exec"), {})
    assert (tmp_path / "made-0.png").read_bytes() == wanted


def test_stop_and_errors(browse, server):
    page = browse(server.url)
    page.wait("document.querySelector('#steps').options.length === 16")
    page.run(
        """(() => {
          const set = (id, value) => { document.getElementById(id).value = value; };
          set("steps", "16"); set("count", "10"); set("size", "96x64");
          document.querySelector("#form").requestSubmit();
          document.querySelector("#stop").click();
        })()"""
    )
    page.wait("document.querySelector('#caption').textContent === 'stopped'")
    page.run("document.querySelector('#prompt').value = '\\0'; make()")
    assert "U+0000" in page.wait("document.querySelector('#error').textContent")


def test_a_key_is_asked_for(browse, start, server, monkeypatch):
    monkeypatch.setenv("CDM_SERVE_API_KEYS", SECRET)
    gateway = start("--triton", server.triton_address())
    gateway.wait_ready()
    page = browse(gateway.url)
    page.wait("!document.querySelector('#ask-key').hidden")
    page.run(
        f"""(() => {{
          document.querySelector("#key").value = {json.dumps(SECRET)};
          document.querySelector("#key").onchange();
        }})()"""
    )
    page.wait("document.querySelector('#steps').options.length === 16")
    page.run("document.querySelector('#form').requestSubmit()")
    page.wait("document.querySelectorAll('#history img').length === 1")
    assert gateway.interrupt() == 0
