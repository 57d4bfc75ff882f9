"""Download the files of data sets with whichever framework is installed.

The PyTorch environment downloads with the function of `torchvision.datasets`, the TensorFlow environment with that of
`tf.keras.datasets`. Their data sets themselves are not used, because they unpickle what they download. The published
MD5 shows that both environments download the same file. Importing this module loads no framework.
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


# By the package that each function needs.
_FETCHERS: dict[str, Callable[[str, Path, str | None], None]] = {"torchvision": _by_torchvision, "keras": _by_keras}


def fetch(what: str, archive: Archive, folder: Path, homepage: str) -> Path:
    """Download an archive into a folder and check its published hash.

    Args:
        what: the name of the data set, with which errors begin.
        archive: the archive to download.
        folder: the destination; created if it is missing.
        homepage: where people can get the file.

    Returns:
        The file.

    Raises:
        DuetError: the download fails; the error names the file to copy by hand.
    """
    file = folder / archive.names[0]
    instruction = (
        f"copy {archive.names[0]} from {homepage} to {folder}, or give its folder with data.options.path=FOLDER"
    )
    if archive.url is None:
        raise DuetError(
            f"{what}: {archive.names[0]} is missing, and its authors give it only on request; {instruction}"
        )
    fetcher = next((fetcher for package, fetcher in _FETCHERS.items() if find_spec(package)), None)
    if fetcher is None:
        raise DuetError(
            f"{what}: {file.name} is missing, and neither torchvision nor Keras, to download it, is installed; "
            f"{instruction}"
        )
    part = folder / ".fetched" / file.name
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        fetcher(archive.url, part, archive.md5)
        part.replace(file)
    # Both may raise socket errors, HTTP errors, and plain exceptions for a wrong hash.
    except Exception as error:
        reason = " ".join((str(error).strip() or type(error).__name__).split())[:200]
        raise DuetError(f"{what}: {archive.url} cannot be downloaded ({reason}); {instruction}") from error
    finally:
        part.unlink(missing_ok=True)
        if part.parent.is_dir() and not any(part.parent.iterdir()):
            part.parent.rmdir()
    return file
