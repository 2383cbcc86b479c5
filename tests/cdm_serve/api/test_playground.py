import re


def test_the_page_needs_nothing_from_elsewhere(server):
    response = server.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    page = response.text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page)
    for route in re.findall(r"""["'](/[a-z0-9/]+)["']""", page):
        assert server.http.get(route).status_code in (200, 405), route
