"""Both environments download data sets, each with its own framework, and prepare the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import archives
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.data.archives import Archive
from diffusion_core.data.sources import DATASET_INFO
from experiments.data.downloads import fetch

pytestmark = pytest.mark.backend

# A constant, so that both environments must produce it; see tests/core/test_prepare.py.
CIFAR10 = "f8125981743ca60629e353bbc4cb7d99434ee32c20026cc26b7588a3aa804d9b"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def good(tmp_path: Path) -> Iterator[Archive]:
    """CIFAR-10's archive, on a server."""
    folder = tmp_path / "server"
    folder.mkdir()
    archives.cifar10(folder, archives.IMAGES["cifar10"])
    (archive,) = DATASET_INFO["cifar10"].archives
    file = folder / archive.names[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        yield replace(archive, url=url, md5=hashlib.md5(file.read_bytes()).hexdigest())
        server.shutdown()


def test_downloaded_file_equals_the_published_file(tmp_path, good):
    folder = tmp_path / "archives" / "cifar10"
    assert DATASET_INFO["cifar10"].missing(folder)
    fetch("cifar10", good, folder, "")
    assert [path.name for path in folder.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert not DATASET_INFO["cifar10"].missing(folder)
    assert load_dataset("cifar10", path=str(folder), part="train").sha256 == CIFAR10


def test_failed_download_names_the_file_to_copy(tmp_path, good):
    for archive, said in (
        (replace(good, md5="0" * 32), "cannot be downloaded"),
        (replace(good, url=f"{good.url}.gone"), "cannot be downloaded"),
        (replace(good, url=None), "its authors give it only on request"),
    ):
        with pytest.raises(DuetError, match=rf"cifar10: .*{said}.*copy cifar-10-binary\.tar\.gz from HOME to "):
            fetch("cifar10", archive, tmp_path / "archives", "HOME")
        assert not any(path.is_file() for path in (tmp_path / "archives").rglob("*"))
