"""The places that a recipe names, tried from this process: written to and read back, or listed; and the road to S3."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from leapray import storage
from leapray.climsim.calendar import is_file_name
from leapray.climsim.pairs import archive, incomplete_in_words
from leapray.doctor.facts import Disk, Pairs, Place, Road, Visit
from leapray.doctor.measure import disk
from leapray.errors import UserError
from leapray.evaluation.tables import SUFFIXES, is_table
from leapray.faults import shown
from leapray.recipe import Recipe

PATIENCE_S = 40.0
"""That a place is given: enough for storage's own repetitions."""
CONNECT_S = 5.0
SOURCES = "data.sources."
"""What the keys of a recipe's sources begin with."""
_PROBE = b"leapray doctor"
T = TypeVar("T")


def named_places(recipe: Recipe) -> list[Place]:
    """What a recipe reads and where it writes."""
    data, training = recipe.data, recipe.training
    reads = {f"{SOURCES}{name}.path": source.path for name, source in data.sources.items()}
    if data.statistics is not None:
        reads["data.statistics"] = data.statistics
    if training.start is not None:
        reads["training.start.model"] = training.start.model
    writes = {"data.prepared": data.prepared, "training.run": training.run}
    for name in ("finetune", "sweep", "ensemble"):
        section = getattr(recipe, name)
        if section is not None:
            writes[f"{name}.directory"] = section.directory
    return [Place(key, url, False) for key, url in reads.items()] + [Place(key, url, True) for key, url in writes.items()]


def is_s3(url: str) -> bool:
    return url.rpartition("::")[2].startswith(("s3://", "s3a://"))


def visit_all(asked: Sequence[Place], patience: float = PATIENCE_S) -> tuple[Visit, ...]:
    """Try several places at the same time, each no longer than ``patience`` seconds."""
    waiting = [(place, _started(lambda place=place: visit(place))) for place in asked]  # type: ignore[misc]
    found = []
    for place, result in waiting:
        try:
            found.append(result(patience))
        except TimeoutError:
            local = "://" not in place.url
            found.append(Visit(place, local, f"{shown(place.url)}: did not answer within {patience:g} s"))
        except Exception as error:
            # its own words may hold anything
            found.append(Visit(place, False, f"{shown(place.url)}: could not be tried ({type(error).__name__})"))
    return tuple(found)


def _started(function: Callable[[], T]) -> Callable[[float], T]:
    """Run a function on a thread that keeps no process alive; what is returned waits so many seconds for its result, or raises."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, function()))
        except Exception as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result(seconds: float) -> T:
        thread.join(seconds)
        if not outcome:
            raise TimeoutError
        good, value = outcome[0]
        if not good:
            raise value
        return value

    return result


def visit(place: Place) -> Visit:
    """Try a place: a small file is written, listed, read back and removed where the recipe writes, and files are listed where it reads."""
    try:
        local = storage.is_local(place.url)
        url = storage.absolute(place.url)
    except UserError as error:
        return Visit(place, False, str(error))
    space = disk(url) if local else None
    try:
        if place.writes:
            _write(_ground(url) if local else url)
        if place.key.startswith(SOURCES):
            return _visit_source(place, url, local, space)
        size = sum(storage.list_sizes(url).values())
    except UserError as error:
        return Visit(place, local, str(error), disk=space)
    if not place.writes and not size:
        return Visit(place, local, f"{shown(url)}: nothing lies there", disk=space)
    return Visit(place, local, bytes=size, disk=space)


def _visit_source(place: Place, url: str, local: bool, space: Disk | None) -> Visit:
    """What a source of a recipe holds: flat files, or else netCDF pairs, which have to be converted first."""
    listed = storage.list_data(url, lambda name: is_table(name) or is_file_name(name))
    sizes = listed.sizes
    tables = {name: size for name, size in sizes.items() if is_table(name)}
    if tables:
        pairs = (name.removeprefix(url).strip("/") for name in sizes.keys() - tables.keys())
        others = tuple(sorted([*listed.passed_over, *pairs]))
        return Visit(place, local, bytes=sum(tables.values()), disk=space, passed_over=others)
    if sizes:
        found = archive(sizes)
        incomplete = incomplete_in_words(found.incomplete) if found.incomplete else None
        held = Pairs(len(found.pairs), incomplete)
        return Visit(place, local, bytes=sum(sizes.values()), disk=space, pairs=held, passed_over=listed.passed_over)
    nothing = f"no {' or '.join(SUFFIXES)} files{listed.remark}" if listed.passed_over else "nothing lies there"
    return Visit(place, local, f"{shown(url)}: {nothing}", disk=space)


def _ground(path: str) -> str:
    """The folder that is there already in which a local place lies or would be made; raises UserError for a file in its way."""
    found = Path(path)
    while not found.exists():
        found = found.parent
    if not found.is_dir():
        raise UserError(f"{path}: cannot be made, {found} is a file")
    return str(found)


def _name() -> str:
    # all else passes over names that begin so
    return f".tmp-doctor-{uuid.uuid4().hex}"


def _write(folder: str) -> None:
    url = storage.join(folder, _name())
    try:
        storage.write_bytes(url, _PROBE)
    except UserError as error:
        # of the place that was asked about, not of the file that tried it
        raise UserError(str(error).replace(shown(url), shown(folder))) from error
    try:
        files, _ = storage.list_folder(folder)
        if url.rpartition("/")[2] not in {name.rpartition("/")[2] for name in files}:
            raise UserError(f"{shown(folder)}: does not list a file that was just written there")
        if storage.read_bytes(url) != _PROBE:
            raise UserError(f"{shown(folder)}: a file that was just written there is read back with other content")
    finally:
        storage.remove(url)


@contextmanager
def marked(visits: Sequence[Visit]) -> Iterator[dict[str, str]]:
    """Files, by key, beside the local places that are written to, by which another process can tell whether it sees the same disk."""
    marks: dict[str, str] = {}
    try:
        for seen in visits:
            if seen.local and seen.place.writes and seen.trouble is None:
                url = storage.join(_ground(storage.absolute(seen.place.url)), _name())
                storage.write_bytes(url, _PROBE)
                marks[seen.place.key] = url
        yield marks
    finally:
        for url in marks.values():
            with suppress(OSError):
                os.unlink(url)


def unseen(marks: dict[str, str]) -> tuple[str, ...]:
    """Keys of the marks that this process does not see."""
    return tuple(key for key, path in marks.items() if not os.path.exists(path))


def road() -> Road:
    """The road to S3, as botocore and fsspec's own configuration resolve it; raises UserError for a configuration that is broken."""
    import botocore.session  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
    from fsspec.config import conf

    own = conf.get("s3", {})
    client = own.get("client_kwargs") or {}
    try:
        session = botocore.session.Session(profile=own.get("profile"))
        credentials = session.get_credentials()
        region = client.get("region_name") or session.get_config_variable("region")
        told = own.get("endpoint_url") or client.get("endpoint_url")
        # its own resolution: variables, a profile, the region
        made = session.create_client("s3", region_name=region or "us-east-1", endpoint_url=told)
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"the configuration of S3 is broken ({shown(str(error))})") from error
    how = "anonymous" if own.get("anon") else "fsspec's configuration" if own.get("key") else credentials and credentials.method
    endpoint = made.meta.endpoint_url
    aws = (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return Road(how, region, shown(endpoint), None if aws else _names_endpoint(own, client), _unreachable(endpoint))


def _names_endpoint(own: Mapping[str, Any], client: Mapping[str, Any]) -> str:
    """What names the endpoint, in the order in which it is looked for: fsspec's settings, botocore's variables, a profile."""
    for key, settings in (("endpoint_url", own), ("client_kwargs", client)):
        if settings.get("endpoint_url"):
            variable = f"FSSPEC_S3_{key.upper()}"
            return variable if variable in os.environ else "endpoint_url in fsspec's configuration"
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next((name for name in variables if name in os.environ), "endpoint_url in AWS's configuration")


def _unreachable(url: str) -> str | None:
    """Why nothing listens at a web address; a proxy in between is left to answer for itself."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    return unreachable(host, port)


def unreachable(host: str, port: int) -> str | None:
    """Why no connection to a port comes about within 5 s; None if one does."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None
