"""The documentation site: it builds without a warning, needs no network, and documents every public name once."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

import duet

pytest.importorskip("mkdocs", reason="the extra docs is installed in the environment of one backend")

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"  # a proxy that does not exist: a build that fetches something fails


class Elements(HTMLParser):
    """All elements of a page: their tags with attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": NOWHERE, "https_proxy": NOWHERE}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {str(path.relative_to(site)): path.read_text("utf-8") for path in site.rglob("*.html")}


def fetched(page: str) -> Iterator[str]:
    """Return what a browser loads with a page."""
    for tag, attributes in Elements(page).found:
        if tag in ("script", "img", "iframe", "source"):
            yield attributes.get("src") or ""
        if tag == "link" and attributes.get("rel") not in ("canonical", "next", "prev"):
            yield attributes.get("href") or ""


def links(page: str, kind: str) -> list[str]:
    """Return the addresses of the links of a class, without their anchors."""
    found = [attributes for tag, attributes in Elements(page).found if tag == "a"]
    return [(a["href"] or "").partition("#")[0] for a in found if kind in (a.get("class") or "").split()]


def resolve(page: str, address: str) -> str:
    """Return the page that a link of a page leads to."""
    return os.path.normpath(os.path.join(os.path.dirname(page), address)) if address else page


def test_no_page_fetches_anything_from_elsewhere(site, pages):
    for name, page in pages.items():
        for address in fetched(page):
            assert "//" not in address, f"{name} loads {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text("utf-8")), style


def test_every_page_of_the_documentation_is_on_the_site_and_in_its_navigation(pages):
    written = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")}
    written |= {f"notebooks/{path.stem}.html" for path in ROOT.glob("notebooks/*.ipynb")}
    tabs = [resolve("index.html", address) for address in links(pages["index.html"], "md-tabs__link")]
    listed = {resolve(tab, address) for tab in tabs for address in links(pages[tab], "md-nav__link")}
    assert written <= pages.keys()
    assert written <= listed, written - listed


def test_the_front_page_leads_to_every_page():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([\w./-]+\.md)[)#]", page.read_text("utf-8"))
            waiting += [(page.parent / link).resolve() for link in links]
    assert set(ROOT.glob("docs/**/*.md")) <= reached


def test_a_link_to_a_file_without_a_page_is_text_and_other_links_lead_to_pages(pages):
    for name, page in pages.items():
        for tag, attributes in Elements(page).found:
            address = (attributes.get("href") or "") if tag == "a" else ""
            if address and not re.match(r"\w+:|#", address):
                assert not re.search(r"\.(md|py|ipynb|yaml)(#|$)", address), f"{name} links {address}"
                assert resolve(name, address.partition("#")[0]) in (*pages, ".") or name == "404.html", (
                    f"{name}: {address}"
                )


def test_every_public_name_has_one_section_with_signature_arguments_and_example(pages):
    api = {name: page for name, page in pages.items() if name.startswith("api/")}
    anchors = [attributes.get("id") for page in api.values() for _, attributes in Elements(page).found]
    for name in duet.__all__:
        assert anchors.count(f"duet.{name}") == 1, name
    for name in duet.__all__:
        value = getattr(duet, name)
        (page,) = [page for page in api.values() if f'id="duet.{name}"' in page]
        section = page.split(f'id="duet.{name}"', 1)[1]
        section = re.split(r'id="duet\.\w+"', section)[0]
        if isinstance(value, Mapping):
            assert all(f"<code>{option}</code>" in section for option in value), name
        elif inspect.isclass(value) or inspect.isfunction(value):
            documentation = inspect.getdoc(value)
            assert "doc-signature" in section or not inspect.isfunction(value), name
            for title, shown in (("Args", "Parameters:|Attributes:"), ("Raises", "Raises:"), ("Example", "Examples:")):
                if re.search(rf"^{title}:$", documentation, re.MULTILINE):
                    assert re.search(shown, section), f"{name}: {title}"


def test_the_reference_begins_with_a_list_of_all_public_names(pages):
    listed = [link.rpartition("#duet.")[2] for link in re.findall(r'<td><a href="([^"]+)"', pages["api/index.html"])]
    assert sorted(listed) == sorted(duet.__all__)


def test_a_public_name_in_a_text_leads_to_its_section(pages):
    link = r'<a href="([^"]*)#duet\.load_dataset"><code>duet\.load_dataset</code></a>'
    found = {name: match[1] for name, page in pages.items() if (match := re.search(link, page))}
    assert found
    for name, address in found.items():
        assert resolve(name, address) in pages, name


def test_formulas_are_shown_without_a_script(pages):
    assert any("<math " in page for name, page in pages.items() if name.startswith("notebooks/"))
    for name, page in pages.items():
        assert "arithmatex" not in page and "$$" not in page, name


def test_the_search_finds_functions(site):
    index = json.loads((site / "search/search_index.json").read_text("utf-8"))
    assert any(entry["title"] == "duet.train" and "change_objective" in entry["text"] for entry in index["docs"])
