"""What the errors of storage mean: which pass by themselves and are waited out, and what to tell the user of the others.

A request to S3 is first repeated by botocore and s3fs; what they leave, and every error of the other file systems, is met here.
Libraries are known by the names of their exceptions, so that none needs to be there.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep as sleep
from typing import Any, TypeVar

from leapray.errors import PassingError, UserError

JOBS_COPY = "/runtime_resources/working_dir_files/"
"""Where on a node Ray unpacks what a job was submitted with."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of the errors of a disk that takes no more."""
ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_RETRY_AFTER = 0.5, 30.0, 600.0
"""Seconds."""

_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "httpx", "huggingface_hub", "requests", "s3fs", "urllib3"}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "InternalError"}
_PASSING_NAMES = {
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "botocore": {"ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseParserError"},
    "http": {"IncompleteRead", "RemoteDisconnected"},
    "httpx": {"TransportError"},
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError"},
    "urllib3": {"ProtocolError", "TimeoutError"},
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_CREDENTIAL_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"}
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}
_BUCKET, _HOST = r"[^:@]*", r"(\[[\da-fA-F:.]+\]|[^:@\[\]]*)(:\d*)?"
_SIGNED = re.compile(
    r"://.*[?&](x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:access_|api_|auth_)?(?:token|key))=",
    re.I,
)
"""The parts of a signed web address, of S3, Google and Azure, and what others call a key."""
_NO_AUTHORITY = {"file", "local", "memory"}
_NAMED_WITH_AT = {"hf", "abfs", "abfss", "az"}
"""Schemes whose names hold an @: a revision, or container@account."""
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "hf": "HF_ENDPOINT"}
_NO_RANGES = "support range requests"
"""Part of what fsspec's http file system says of a server that gives only whole files."""
_INVALID_ENDPOINT = re.compile(r"Invalid endpoint: (.*)")
"""What botocore says of an endpoint that is no URL."""
_MISSING = "no such file"
_PARTICIPLE = {"read": "read", "write": "written", "list": "listed", "remove": "removed"}

T = TypeVar("T")


class IncompleteReadError(ConnectionError):
    """Fewer bytes came than the file has."""


def retried(operation: Callable[[], T], pause: Callable[[float], None] | None = None) -> T:
    """What ``operation`` returns, repeated while its errors pass by themselves, up to 6 times.

    ``pause(seconds)`` waits in between: twice as long each time, with jitter, and at least as long as the server's Retry-After asks;
    where that is more than 600 s, its error is raised at once.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return operation()
        except Exception as error:
            asked = retry_after(error)
            if not passing(error) or asked > _LONGEST_RETRY_AFTER:
                raise
            backoff = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT) * random.uniform(0.5, 1)
            (pause or sleep)(max(backoff, asked))
    return operation()


def passing(error: BaseException) -> bool:
    """Whether an error is of the kind that passes by itself: throttling, a server's own trouble, a broken or silent connection."""
    if isinstance(error, UserError):
        return False
    found = _chain(error)
    if any(isinstance(item, ConnectionError | TimeoutError) or _is_named(item, _PASSING_NAMES) for item in found):
        return True
    return any(_status(item) in _PASSING_STATUS or _code(item) in _PASSING_CODES for item in found)


def retry_after(error: BaseException) -> float:
    """Seconds that the server asked to wait, 0 where it did not say so in seconds."""
    for item in _chain(error):
        for headers in _headers(item):
            told = headers.get("Retry-After") or headers.get("retry-after")
            if told and re.fullmatch(r"\d+(\.\d+)?", str(told)):
                return float(told)
    return 0.0


@contextmanager
def explained(url: str, verb: str = "read") -> Iterator[None]:
    """Raise what goes wrong with a URL's file system in the block as a UserError; errors of other origin pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and _NO_RANGES in str(error):
            raise UserError(
                f"{shown(url)}: its server gives only whole files, not parts of them; copy it first with `leapray fetch`"
            ) from error
        if isinstance(error, ValueError) and (endpoint := _INVALID_ENDPOINT.match(str(error))):
            found = told(shown(endpoint[1]))
            example = "http://localhost:9000" if "://" in found else f"http://{found}"
            raise UserError(
                f"AWS_ENDPOINT_URL, or endpoint_url in ~/.aws/config, is {found!r}; expected a scheme, a host and a port, such as {example}"
            ) from error
        if isinstance(error, UserError) or not (isinstance(error, OSError) or _library(error) in _LIBRARIES):
            raise
        kind = PassingError if passing(error) else UserError
        sentence = _sentence(url, verb, error)
        raise kind(f"{placed(url) if sentence == _MISSING else shown(url)}: {sentence}") from error


def refuse_secrets(url: str) -> None:
    """Raises UserError for a URL that carries a user, password or key before its host or bucket, or a signature or token in its query.

    None of it is shown.
    """
    for scheme, authority in re.findall(r"([A-Za-z][\w+.-]*)://([^/?#]*)", url):
        store = _ALIASES.get(scheme, scheme)
        pattern = _BUCKET if store in _CREDENTIALS else _HOST
        if scheme not in _NO_AUTHORITY and not (re.fullmatch(pattern, authority) or (scheme in _NAMED_WITH_AT and ":" not in authority)):
            known = _CREDENTIALS.get(store, "fsspec's own configuration or its environment variables FSSPEC_*")
            raise UserError(f"a URL {scheme}:// carries a user, password or key, which none may; set {known}")
    if signed := _SIGNED.search(url):
        raise UserError(
            f"a URL carries a secret in its query ({signed[1]}), which none may, for recipes and runs are kept with their URLs; "
            "copy what it leads to first"
        )


def told(value: object, most: int = 80) -> str:
    """A name or value that a file holds as a message may show it: short, in one line, and without what would command a terminal."""
    text = str(value)
    kept = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text[:most])
    return kept if len(text) <= most else f"{kept}..."


def placed(url: str) -> str:
    """A URL as a message names it where nothing was found: beside a relative path the place where it was looked for, and for both, whether
    that is a job's copy of its working directory."""
    if "://" in url or "::" in url:
        return shown(url)
    place = os.path.abspath(url)
    parts = [] if os.path.isabs(url) else [f"looked for at {told(place, 1000)}"]
    if JOBS_COPY in place:
        parts.append("which is in the job's own copy of the working directory; give a URL, or an absolute path that all nodes see")
    return shown(url) + (f" ({', '.join(parts)})" if parts else "")


def shown(text: str) -> str:
    """A URL, or a sentence with URLs in it, without users, passwords and keys, and without the queries of signed web addresses."""
    # a colon may stand before a port, but not in the address of a bucket, and a secret may hold a slash
    text = re.sub(r"(?:(?<!http)(?<!https)://[^\s/@:]*:\S*@|://[^\s/@:]*:(?!\d+(?:/|$))\S*@|://[^\s/]*@)", "://", text)
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text)


def _sentence(url: str, verb: str, error: Exception) -> str:
    scheme = _ALIASES.get(found := url.partition("://")[0], found) if "://" in url else ""
    last = _chain(error)[-1]
    code, status = _code(last), _status(last)
    credentials = f"; set {_CREDENTIALS[scheme]}" if scheme in _CREDENTIALS else ""
    endpoint = f"; check {_ENDPOINTS[scheme]} and the network" if scheme in _ENDPOINTS else "; check the network"
    if _names(error) & _NO_CREDENTIALS:
        return f"no credentials were found{credentials}"
    if code in _CREDENTIAL_CODES or status == 401:
        return f"the credentials are refused ({code or status}){credentials}"
    if code == "NoSuchBucket":
        return "there is no such bucket; check its name, AWS_ENDPOINT_URL and AWS_REGION"
    if passing(error) and (asked := retry_after(error)) > _LONGEST_RETRY_AFTER:
        most = f"more than the {_LONGEST_RETRY_AFTER:.0f} s that are waited for at most"
        return f"its server asks to wait {asked:.0f} s ({_reason(last)}), {most}; run the same command again after that"
    if passing(error):
        return f"still fails after {ATTEMPTS} attempts ({_reason(last)}){endpoint}"
    if scheme and (isinstance(error, PermissionError) or status == 403):
        return f"access is denied ({code or status or _reason(error)}), by wrong credentials or missing permission{credentials}"
    if status == 404 or (verb != "write" and isinstance(error, FileNotFoundError | IsADirectoryError)):
        return _MISSING
    if verb == "read" and isinstance(error, PermissionError):
        return f"may not be read ({_reason(error)})"
    return f"cannot be {_PARTICIPLE[verb]} ({_reason(error)})"


def _reason(error: BaseException) -> str:
    if status := _status(error):
        return " ".join(filter(None, [str(status), code if (code := _code(error)) != str(status) else ""]))
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return shown(" ".join(text.split())) or type(error).__name__


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, the deepest last."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for item in _chain(error) for base in type(item).__mro__}


def _is_named(error: BaseException, names: dict[str, set[str]]) -> bool:
    return any(base.__name__ in names.get(base.__module__.partition(".")[0], ()) for base in type(error).__mro__)


def _response(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _code(error: BaseException) -> str:
    """The error code of S3, which for an answer without a body is the status."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    """The status of an HTTP answer as botocore, aiohttp, requests, httpx and gcsfs carry it, else 0."""
    found = (
        _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode"),
        getattr(getattr(error, "response", None), "status_code", None),
        getattr(error, "status", None),
        getattr(error, "code", None),
    )
    return next((int(str(status)) for status in found if str(status).isdigit()), 0)


def _headers(error: BaseException) -> list[Any]:
    response = getattr(error, "response", None)
    found = (
        _response(error).get("ResponseMetadata", {}).get("HTTPHeaders"),
        getattr(response, "headers", None),
        getattr(error, "headers", None),
    )
    return [headers for headers in found if headers is not None]
