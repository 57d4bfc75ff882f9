"""Pages of the site that are no files of docs/: the front page, the API pages and the notebooks; and their order.

MkDocs calls the functions `on_...` of this file, a hook of mkdocs.yml.

    index.md        README.md; likewise contributing.md and changelog.md
    api/index.md    the public names of `import duet`, in the groups of duet/__init__.py
    api/NAME.md     the names of a group
    core/NAME.md    the modules of a package of diffusion_core
    notebooks/*.md  text, code and outputs of notebooks/*.ipynb
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from html import unescape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from latex2mathml.converter import convert as latex_to_mathml  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

import diffusion_core  # noqa: E402
import duet  # noqa: E402
from duet.cli.backends import backends  # noqa: E402

# The packages of diffusion_core that have a page, in the order in which they build on one another.
CORE = ("diffusion", "networks", "sampling", "model", "training", "optim", "backend", "data", "likelihood", "metrics")

# Files of the folder above docs/, and their pages.
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages, and replace the patterns of the navigation by the pages that they match."""
    for path, content in {**root_pages(), **api_pages(), **core_pages(), **notebook_pages()}.items():
        files.append(File.generated(config, path, content=content))
    pages = [file.src_uri for file in files.documentation_pages()]
    named = {word for word in words(config.nav) if "*" not in word}
    config.nav = expand(config.nav, [page for page in pages if page not in named])
    return files


def root_pages() -> dict[str, str]:
    """Return the pages of the files in the folder above docs/."""
    return {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to pages of the site; where a file has none, its name stays as a text."""
    source = repository_path(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, address, anchor = found.groups()
        target = os.path.normpath(os.path.join(os.path.dirname(source), address))
        place = site_path(target)
        if files.get_file_from_path(place):
            return f"[{text}]({up(page.file.src_uri)}{place}{anchor or ''})"
        return text if (ROOT / target).exists() else found[0]

    return re.sub(r"\[([^\]]*)\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)


def repository_path(page: str) -> str:
    """Return the file of the repository that a page of the site shows."""
    named = {page: name for name, page in ROOT_PAGES.items()}
    if page.startswith("notebooks/"):
        return page.removesuffix(".md") + ".ipynb"
    return named.get(page, f"docs/{page}")


def site_path(file: str) -> str:
    """Return where the site has a file of the repository."""
    if (ROOT / file).is_dir():
        file += "/index.md" if (ROOT / file / "index.md").exists() else ".md"
    if file.startswith("notebooks/"):
        return re.sub(r"\.ipynb$", ".md", file)
    return ROOT_PAGES.get(file, file.removeprefix("docs/"))


def up(path: str) -> str:
    """Return the way from a page to the top folder."""
    return "../" * path.count("/")


def groups() -> dict[str, list[str]]:
    """Return the public names of duet by group: the comments in duet/__init__.py are the titles."""
    found: dict[str, list[str]] = {}
    title = "Other names"
    for line in inspect.getsource(duet).splitlines():
        if comment := re.fullmatch(r"    # (.+)", line):
            title = comment[1]
        elif (name := re.match(r'    "(\w+)": "', line)) and name[1] in duet.__all__:
            found.setdefault(title[0].upper() + title[1:], []).append(name[1])
    return {title: sorted(names, key=rank) for title, names in found.items()}


def rank(name: str) -> int:
    """Return the place of a name on its page: functions, then classes, then tables."""
    return 2 if name.isupper() else int(inspect.isclass(getattr(duet, name)))


def api_pages() -> dict[str, str]:
    """Return the list of public names, and one page for each group of them."""
    pages, rows = {}, ["# import duet\n"]
    for i, (title, names) in enumerate(groups().items(), 1):
        page = f"{i:02d}-{slug(title)}.md"
        pages[f"api/{page}"] = f"# {title}\n\n" + "\n\n".join(map(entry, names))
        rows += [f"## [{title}]({page})\n", "| name | |", "| --- | --- |"]
        rows += [f"| `duet.{name}` | {summary(getattr(duet, name), name)} |" for name in names]
        rows.append("")
    return {"api/index.md": "\n".join(rows), **pages}


def summary(value: Any, name: str) -> str:
    """Return the first sentence of a docstring in a cell of a table; of a table of options, what it has."""
    if isinstance(value, Mapping):
        return f"{len(value)} {name.lower()} by name"
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def slug(title: str) -> str:
    """Return a title as the name of a file."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def entry(name: str) -> str:
    """Return the section of a public name: from its docstring, or the table of a registry."""
    value = getattr(duet, name)
    if isinstance(value, Mapping):
        return "\n".join([f"## duet.{name} {{ #duet.{name} }}\n", *registry(value)])
    if inspect.ismodule(value):
        return directive(value.__name__, f"duet.{name}")
    if not (inspect.isclass(value) or inspect.isfunction(value)):  # an object, documented by its class
        hidden = ("show_signature", "show_labels", "show_symbol_type_heading", "show_symbol_type_toc")
        path = f"{type(value).__module__}.{type(value).__qualname__}"
        return directive(path, f"duet.{name}", **dict.fromkeys(hidden, False))
    return directive(f"{value.__module__}.{value.__qualname__}", f"duet.{name}")


def directive(path: str, heading: str, **options: Any) -> str:
    """Return the line that mkdocstrings replaces by the documentation of an object, with its public name as heading."""
    options = {"heading": heading, "toc_label": heading, "heading_level": 2, **options}
    lines = [f"      {key}: {json.dumps(value)}" for key, value in options.items()]
    return "\n".join([f"[](){{ #{heading} }}\n", f"::: {path}", "    options:", *lines])


def registry(table: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    """Return the rows of a table of named functions: their options with defaults, and their summaries."""
    yield "| name | options | |"
    yield "| --- | --- | --- |"
    for name, value in table.items():
        parameters = inspect.signature(value).parameters.values() if inspect.isfunction(value) else ()
        options = [option(p) for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
        yield f"| `{name}` | {', '.join(options)} | {summary(value, name)} |"


def option(parameter: inspect.Parameter) -> str:
    """Return an option with its default as code."""
    text = parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
    return f"`{text}`".replace("|", "\\|")


def core_pages() -> dict[str, str]:
    """Return one page for each package of CORE, with a section for each of its modules."""
    return {f"core/{i:02d}-{name}.md": core_page(name) for i, name in enumerate(CORE, 1)}


def core_page(name: str) -> str:
    """Return the page of a package of the core."""
    folder = Path(diffusion_core.__path__[0]) / name
    modules = [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_")]
    return f"# diffusion_core.{name}\n\n" + "\n\n".join(core_module(f"{name}.{module}") for module in modules)


def core_module(name: str) -> str:
    """Return the section of a module of the core: its mathematics, and its names but for those that duet exports."""
    module = importlib.import_module(f"diffusion_core.{name}")
    public = {id(getattr(duet, exported)): exported for exported in duet.__all__}
    own = {member: public.get(id(getattr(module, member))) for member in module.__all__}
    section = directive(module.__name__, name, members=[member for member, exported in own.items() if not exported])
    exported = [f"`duet.{exported}`" for exported in own.values() if exported]
    return section + (f"\n\nPublic names of this module: {', '.join(exported)}." if exported else "")


def notebook_pages() -> dict[str, str | bytes]:
    """Return the notebooks as pages: text, code, and outputs as text or as image files."""
    pages: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        parts = []
        for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(source)
            elif cell["cell_type"] == "code":
                parts.append(fence("python", source))
                for j, output in enumerate(cell["outputs"]):
                    text, image = shown(output)
                    if image:
                        pages[f"notebooks/{path.stem}-{i}-{j}.png"] = image
                        parts.append(f"![]({path.stem}-{i}-{j}.png)")
                    elif text.strip():
                        parts.append(fence("{.text .output}", text))
        parts.append(f"*This page is `notebooks/{path.name}` with the outputs that it keeps.*")
        pages[f"notebooks/{path.stem}.md"] = notebook_title(path) + "\n\n".join(parts)
    return pages


def notebook_title(path: Path) -> str:
    """Return the head of a page that gives a notebook another title in the navigation than its heading."""
    framework = framework_of_twin(path)
    return f"---\ntitle: {json.dumps(notebook_heading(path) + framework)}\n---\n\n" if framework else ""


def framework_of_twin(path: Path) -> str:
    """Return the framework, in brackets, of a notebook whose twin in another framework has the same heading."""
    number, framework = path.stem.partition("_")[0], path.stem.rpartition("_")[2]
    twins = [twin for twin in path.parent.glob(f"{number}_*_*.ipynb") if twin != path]
    is_twin = framework in backends() and notebook_heading(path) in map(notebook_heading, twins)
    return f" ({backends()[framework].title})" if is_twin else ""


def notebook_heading(path: Path) -> str:
    """Return the first line of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"][0].strip("# \n")


def fence(language: str, text: str) -> str:
    """Return a text as a fenced block."""
    return f"````{language}\n{text.rstrip()}\n````"


def shown(output: Mapping[str, Any]) -> tuple[str, bytes | None]:
    """Return the text of an output of a notebook, and its image if it is one."""
    data = output.get("data", {})
    if "image/png" in data:
        return "", base64.b64decode("".join(data["image/png"]))
    return "".join(output.get("text", data.get("text/plain", ""))), None


def words(nav: Any) -> Iterator[str]:
    """Return the names of pages in a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from words(item)


def expand(nav: list[Any], pages: list[str]) -> list[Any]:
    """Return a navigation whose patterns are replaced by the pages they match; without sections that are empty."""
    made = []
    for item in nav:
        if isinstance(item, dict):
            ((title, value),) = item.items()
            inner = expand(value if isinstance(value, list) else [value], pages)
            if isinstance(value, list) or "*" in value:
                made += [{title: inner}] if inner else []
            else:
                made.append(item)
        elif "*" in item:
            found = [page for page in pages if fnmatch(page, item) and page.count("/") == item.count("/")]
            made += sorted(found, key=lambda page: (not page.endswith("index.md"), page))
        else:
            made.append(item)
    return made


def on_page_content(html: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Make formulas of LaTeX into MathML, and let every `duet.NAME` in a text lead to its section."""
    html = re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, html, flags=re.DOTALL)
    places = {name: f"{up(page.file.src_uri)}{path[:-3]}.html#duet.{name}" for path, name in sections()}

    def link(found: re.Match[str]) -> str:
        target = places.get(found[1])
        return f'<a href="{target}">{found[0]}</a>' if target else found[0]

    return re.sub(r"<code>duet\.(\w+)(?:\(\))?</code>(?!</a>)", link, html)


def formula(found: re.Match[str]) -> str:
    """Return a formula as MathML, which browsers show without a script."""
    math = latex_to_mathml(unescape(found[2]), display="block" if found[1] == "div" else "inline")
    return f'<div class="formula">{math}</div>' if found[1] == "div" else math


def sections() -> Iterator[tuple[str, str]]:
    """Return the page and the name of each public name."""
    for i, (title, names) in enumerate(groups().items(), 1):
        for name in names:
            yield f"api/{i:02d}-{slug(title)}.md", name
