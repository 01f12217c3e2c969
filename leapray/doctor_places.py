"""The places that a recipe reads and writes, tried: can they be used, what do they hold, and how much room is there?"""

from __future__ import annotations

import shutil
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from leapray import storage
from leapray.climsim.calendar import is_file_name
from leapray.climsim.pairs import REMEDY, archive, incomplete_in_words
from leapray.console import scaled
from leapray.data.findings import Finding, Verdict
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES, is_table
from leapray.faults import explained, shown
from leapray.recipe import Recipe

PATIENCE_S, _CONNECT_S = 40.0, 5.0
"""Seconds for all places, and for a connection."""
SOURCES, PREPARED = "data.sources.", "data.prepared"
_PROBE = b"leapray doctor"


def ok(text: str) -> Finding:
    return Finding(Verdict.OK, text)


def note(text: str) -> Finding:
    return Finding(Verdict.NOTE, text)


def wrong(text: str) -> Finding:
    return Finding(Verdict.WRONG, text)


@dataclass(frozen=True)
class Place:
    """A place that a recipe names: its key, its URL, and whether it is written to."""

    key: str
    url: str
    writes: bool


@dataclass(frozen=True)
class Visit:
    """A place that was tried: why it cannot be used, with the remedy; bytes of its files; free bytes of a local disk; and the names of
    files that no verb reads."""

    place: Place
    trouble: str | None = None
    bytes: int = 0
    free: int | None = None
    passed_over: tuple[str, ...] = ()


def named_places(recipe: Recipe) -> list[Place]:
    """What a recipe reads and where it writes."""
    data, training = recipe.data, recipe.training
    reads = {f"{SOURCES}{name}.path": source.path for name, source in data.sources.items()}
    reads |= {"data.statistics": data.statistics} if data.statistics else {}
    reads |= {"training.start.model": training.start.model} if training.start else {}
    writes = {PREPARED: data.prepared, "training.run": training.run}
    sections = {"finetune": recipe.finetune, "sweep": recipe.sweep, "ensemble": recipe.ensemble}
    writes |= {f"{name}.directory": section.directory for name, section in sections.items() if section is not None}
    return [Place(key, url, False) for key, url in reads.items()] + [Place(key, url, True) for key, url in writes.items()]


def visit_all(places: Sequence[Place], patience: float = PATIENCE_S) -> tuple[Visit, ...]:
    """Try places at the same time, for at most so many seconds."""
    found: dict[Place, Visit] = {}

    def run(place: Place) -> None:
        try:
            found[place] = visit(place)
        except Exception as error:
            # its own words may hold anything
            found[place] = Visit(place, f"{shown(place.url)}: could not be tried ({type(error).__name__})")

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in places]
    stop = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(stop - time.monotonic(), 0))
    late = f"did not answer within {patience:g} s; check its address and the network"
    return tuple(found.get(place) or Visit(place, f"{shown(place.url)}: {late}") for place in places)


def visit(place: Place) -> Visit:
    """Try a place: where the recipe writes, write and remove a small file; where it reads, list the files."""
    try:
        local, url = storage.is_local(place.url), storage.absolute(place.url)
        free = shutil.disk_usage(existing(url)).free if local else None
        if silence := None if local else _s3_silence(place.url):
            return Visit(place, f"{shown(place.url)}: {silence}")
        if place.writes:
            _write(_folder(url) if local else url)
        if place.key.startswith(SOURCES):
            return _visit_source(place, url, free)
        size = sum(storage.list_sizes(url).values())
    except UserError as error:
        return Visit(place, str(error))
    trouble = None if place.writes or size else f"{shown(url)}: nothing is there; set {place.key} to where the files are"
    return Visit(place, trouble, size, free)


def _visit_source(place: Place, url: str, free: int | None) -> Visit:
    """A source has flat files; netCDF pairs alone have to be converted first."""
    listed = storage.list_data(url, lambda name: is_table(name) or is_file_name(name))
    tables = {name: size for name, size in listed.sizes.items() if is_table(name)}
    pairs = sorted(listed.sizes.keys() - tables.keys())
    if tables:
        others = [*listed.passed_over, *(name.removeprefix(url).strip("/") for name in pairs)]
        return Visit(place, None, sum(tables.values()), free, tuple(sorted(others)))
    if not pairs:
        nothing = f"no {' or '.join(SUFFIXES)} files are there; set {place.key} to where the files are{listed.remark}"
        return Visit(place, f"{shown(url)}: {nothing}", 0, free)
    found = archive(pairs)
    count = f"{len(found.pairs)} netCDF pair{'' if len(found.pairs) == 1 else 's'} and no flat files"
    holes = f". {incomplete_in_words(found.incomplete)}; {REMEDY}" if found.incomplete else ""
    convert = f"run `leapray convert {shown(place.url)} DEST` first and set {place.key} to DEST"
    return Visit(place, f"{shown(place.url)} holds {count}; {convert}{holes}", 0, free, listed.passed_over)


def _s3_silence(url: str) -> str | None:
    """Why nothing answers at the endpoint of an S3 URL within 5 s; storage alone would try for minutes. A proxy is not tried."""
    fs, _ = storage.filesystem(url)
    if "s3" not in fs.protocol:
        return None
    with explained(url):
        fs.connect()
    endpoint = urlsplit(fs.s3.meta.endpoint_url)
    host, port = endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)
    if endpoint.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return f"nothing answers at {endpoint.scheme}://{host}:{port} ({reason}); check AWS_ENDPOINT_URL and the network"
    return None


def existing(path: str) -> Path:
    """The path, or the nearest folder above it that is there."""
    found = Path(path)
    while not found.exists():
        found = found.parent
    return found


def _folder(path: str) -> str:
    """The folder that is there already in which a local place is or would be made; raises UserError for a file in its way."""
    if not (found := existing(path)).is_dir():
        raise UserError(f"{path}: cannot be made, {found} is a file")
    return str(found)


def _probe(folder: str) -> str:
    # listings ignore names that begin so
    return storage.join(folder, f".tmp-doctor-{uuid.uuid4().hex}")


def _write(folder: str) -> None:
    url = _probe(folder)
    try:
        storage.write_bytes(url, _PROBE)
    except UserError as error:
        # name the place, not the file that tried it
        raise UserError(str(error).replace(shown(url), shown(folder))) from error
    storage.remove(url)


@contextmanager
def marked(visits: Iterable[Visit]) -> Iterator[dict[str, str]]:
    """Small files, by key, at the local places that are written to: a node that does not see one has another disk of that name."""
    marks: dict[str, str] = {}
    try:
        for seen in visits:
            if seen.free is not None and seen.place.writes and seen.trouble is None:
                marks[seen.place.key] = _probe(_folder(storage.absolute(seen.place.url)))
                storage.write_bytes(marks[seen.place.key], _PROBE)
        yield marks
    finally:
        for path in marks.values():
            Path(path).unlink(missing_ok=True)


def is_prepared(recipe: Recipe, visits: Iterable[Visit]) -> bool:
    """Whether the recipe's data is prepared, so that its sources are not needed; asked only where one of these is in trouble."""
    if not any(seen.trouble and seen.place.key.startswith(SOURCES) for seen in visits):
        return False
    from leapray.data.shards import open_prepared

    with suppress(UserError):
        open_prepared(recipe.data)
        return True
    return False


def judge_visits(visits: Iterable[Visit], *, prepared: bool = False) -> Iterator[Finding]:
    """Places as one machine found them. Trouble with a source is only noted where its data is ``prepared`` already."""
    for seen in visits:
        key, url = seen.place.key, shown(seen.place.url)
        if seen.trouble is not None:
            remedy = f"; set {key} to a place that can be written" if seen.place.writes else ""
            yield (note if prepared and key.startswith(SOURCES) else wrong)(f"{key} cannot be used: {seen.trouble}{remedy}")
        elif seen.place.writes:
            free = "" if seen.free is None else f", {scaled(seen.free)} free"
            yield ok(f"{key}: {url} can be written{free}")
        else:
            yield ok(f"{key}: {url} holds {scaled(seen.bytes)}")
        if seen.passed_over:
            yield note(f"{key}: {storage.passed_over_in_words(seen.passed_over)}")
