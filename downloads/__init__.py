"""Fetching the files of data sets, by whichever framework is installed.

PyTorch's environment fetches as `torchvision.datasets` do, TensorFlow's as `tf.keras.datasets` do: the functions that
their data sets download with. Their data sets themselves are not used: they unpickle what they fetch. The file is the
same either way, which its published MD5 shows, so what is read from it is the same as well.
Importing this package loads no framework.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import Archive

__all__ = ["fetch"]


def _by_torchvision(url: str, file: Path, md5: str | None) -> None:
    from torchvision.datasets.utils import download_url

    download_url(url, file.parent, file.name, md5)


def _by_keras(url: str, file: Path, md5: str | None) -> None:
    from keras.utils import get_file

    get_file(file.name, url, cache_dir=file.parent, cache_subdir="", file_hash=md5, hash_algorithm="md5")


# By the package that each needs.
_FETCHERS: dict[str, Callable[[str, Path, str | None], None]] = {"torchvision": _by_torchvision, "keras": _by_keras}


def fetch(what: str, archive: Archive, folder: Path, homepage: str) -> Path:
    """Fetch an archive into a folder; gives the file, whole and with its published hash.

    Args:
        what: the data set; errors begin with it.
        archive: what to fetch.
        folder: where to, made if it is missing.
        homepage: where people get it.

    Raises:
        DuetError: it cannot be fetched; names the file to bring.
    """
    file = folder / archive.names[0]
    bring = f"bring {archive.names[0]} from {homepage} to {folder}, or name its folder with data.options.path=FOLDER"
    if archive.url is None:
        raise DuetError(f"{what}: {archive.names[0]} is not there, and its authors give it to people alone; {bring}")
    fetcher = next((fetcher for package, fetcher in _FETCHERS.items() if find_spec(package)), None)
    if fetcher is None:
        raise DuetError(
            f"{what}: {file.name} is not there, and neither torchvision nor Keras, to fetch it with; {bring}"
        )
    part = folder / ".fetched" / file.name
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        fetcher(archive.url, part, archive.md5)
        part.replace(file)
    # Both raise what their own downloader does: errors of sockets, of HTTP, and plain exceptions for a wrong hash.
    except Exception as error:
        reason = " ".join((str(error).strip() or type(error).__name__).split())[:200]
        raise DuetError(f"{what}: {archive.url} cannot be fetched ({reason}); {bring}") from error
    finally:
        part.unlink(missing_ok=True)
        if part.parent.is_dir() and not any(part.parent.iterdir()):
            part.parent.rmdir()
    return file
