from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.gateways import problem_of

if TYPE_CHECKING:
    from starlette.testclient import TestClient

STATIC = {entry.name: entry.read_text() for entry in files("service").joinpath("static").iterdir()}
PAGES = ("index.html", "docs.html")
SCRIPTS = [name for name in STATIC if name.endswith(".js")]
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\(|new Function|"
    r"createContextualFragment|DOMParser|javascript:"
)


class Elements(HTMLParser):
    """Collects all elements of a page with their attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.script = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.script += data.strip()


class TestDashboard:
    def test_is_public_and_serves_nothing_else(self, client: TestClient):
        answer = client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.text == STATIC["index.html"]
        assert client.get("/docs").text == STATIC["docs.html"]

    @pytest.mark.parametrize(
        "path",
        ["/", "/docs", "/static/swagger-ui-bundle.js", *(f"/static/{name}" for name in STATIC)],
    )
    def test_runs_nothing_but_its_own_files(self, client: TestClient, path: str):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert not any("unsafe" in sources or "*" in sources for sources in policy.values())
        assert answer.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize("page", PAGES)
    def test_has_no_script_or_style_of_its_own_in_the_page(self, page: str):
        elements = Elements(STATIC[page])
        assert elements.script == ""
        for tag, attributes in elements.found:
            assert tag not in ("style", "iframe", "object", "embed")
            assert "style" not in attributes
            assert not any(name.startswith("on") for name in attributes)
            for address in (attributes.get("src"), attributes.get("href")):
                assert address in (None, "/", "/docs") or address.startswith(("/static/", "#/"))

    def test_names_only_files_that_ship(self, client: TestClient):
        named = re.findall(r"/static/([\w.-]+)", "".join(STATIC[page] for page in PAGES))
        assert all(client.get(f"/static/{name}").status_code == 200 for name in named)
        imported = [
            name for script in SCRIPTS for name in re.findall(r'from "\./(.+?)"', STATIC[script])
        ]
        assert set(imported) <= set(STATIC)

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_makes_no_markup_of_text(self, script: str):
        assert MARKUP.search(STATIC[script]) is None

    def test_is_not_sent_twice(self, client: TestClient):
        first = client.get("/static/main.js")
        again = client.get("/static/main.js", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize(
        "name", ["none.js", "..%2fapp.py", "%2e%2e/app.py", "../app.py", "main.js%00", "a/b.js"]
    )
    def test_gives_no_other_file(self, client: TestClient, name: str):
        answer = client.get(f"/static/{name}")
        assert problem_of(answer)["status"] in (401, 404)
        assert "build_app" not in answer.text
