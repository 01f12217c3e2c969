"""Files of a Kaggle competition or dataset, through Kaggle's own client, which is an extra and imported only when it is asked for."""

from __future__ import annotations

import importlib
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from leapray import storage
from leapray.data.flat import Selection
from leapray.data.origin import Chosen, Throttle
from leapray.errors import UserError

SCHEME = "kaggle://"
_PAGE = 200
_CREDENTIALS = "KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY"


class KaggleFiles:
    """``kaggle://<competition>`` or ``kaggle://<owner>/<dataset>``; the client keeps to Kaggle's limits by itself."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, url.removeprefix(SCHEME).strip("/")
        self._kind = "dataset" if "/" in self.name else "competition"
        self._api = _client(url)

    def files(self, selection: Selection) -> Chosen:
        chosen = Chosen()
        token = None
        while True:
            page = self._call("list_files", self.name, page_token=token, page_size=_PAGE)
            for file in page.files:
                chosen.add(selection, file.name, partial(int, file.total_bytes), file.name)
            token = page.next_page_token
            if not token:
                return chosen

    def copy(self, name: str, size: int, destination: str, throttle: Throttle) -> None:
        throttle.take(size)
        with tempfile.TemporaryDirectory(prefix="leapray-", dir=_beside(destination)) as folder:
            self._call("download_file", self.name, name, path=folder, force=True, quiet=True)
            (got,) = Path(folder).iterdir()
            if zipfile.is_zipfile(got):
                got = _only_member(got)
            if got.stat().st_size != size:
                raise UserError(f"{self.url}/{name}: {got.stat().st_size} bytes came, expected {size} as listed")
            got.replace(destination)

    def _call(self, what: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._api, f"{self._kind}_{what}")(*arguments, **options)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.url}: Kaggle refuses ({reason}); check the name, that you joined it, and {_CREDENTIALS}") from error


def _client(url: str) -> Any:
    try:
        client = importlib.import_module("kaggle.api.kaggle_api_extended").KaggleApi()
        client.authenticate()
    except ImportError as error:
        raise UserError(f"{url}: needs an extra, pip install 'leapray[kaggle]'") from error
    # without credentials the client exits, some versions of it already when imported
    except (SystemExit, OSError, ValueError) as error:
        raise UserError(f"{url}: no credentials were found; set {_CREDENTIALS}") from error
    return client


def _beside(destination: str) -> Path:
    if not storage.is_local(destination):
        raise UserError(f"{destination}: files of Kaggle are fetched to a local directory only")
    folder = Path(destination).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _only_member(archive: Path) -> Path:
    """The one file of the archive that Kaggle wraps large files in."""
    with zipfile.ZipFile(archive) as opened:
        (member,) = opened.namelist()
        return Path(opened.extract(member, archive.parent / "unpacked"))
