"""Which errors of storage are waited out, and how long."""

import aiohttp
import botocore.exceptions
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from leapray import faults
from leapray.errors import UserError


def s3_error(status: int, code: str, **headers: str) -> botocore.exceptions.ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
    return botocore.exceptions.ClientError(answer, "GetObject")


def http_error(status: int, **headers: str) -> aiohttp.ClientResponseError:
    asked = CIMultiDictProxy(CIMultiDict[str]())
    request = aiohttp.RequestInfo(URL("http://host/file"), "GET", asked, URL("http://host/file"))
    return aiohttp.ClientResponseError(request, (), status=status, headers=CIMultiDict(headers))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        s3_error(503, "SlowDown"),
        s3_error(500, "InternalError"),
        s3_error(400, "RequestTimeout"),
        s3_error(429, "429"),
        caused(OSError(16, "reduce your request rate"), s3_error(503, "503")),
        caused(FileNotFoundError("http://host/file"), http_error(503)),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://host"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://host"),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        aiohttp.ServerDisconnectedError(),
        http_error(429),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_what_passes_by_itself_is_repeated(error: Exception, waits: list[float]) -> None:
    answers = iter([error, error, "content"])

    def operation() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert faults.retried(operation) == "content"
    assert len(waits) == 2


@pytest.mark.parametrize(
    "error",
    [
        s3_error(404, "NoSuchKey"),
        s3_error(403, "SignatureDoesNotMatch"),
        caused(FileNotFoundError("x"), s3_error(404, "NoSuchBucket")),
        caused(PermissionError("x"), s3_error(403, "403")),
        caused(FileNotFoundError("x"), http_error(404)),
        botocore.exceptions.NoCredentialsError(),
        http_error(501),
        FileNotFoundError(),
        caused(UserError("told already"), s3_error(503, "SlowDown")),
        TypeError(),
    ],
)
def test_what_cannot_get_better_is_not(error: Exception, waits: list[float]) -> None:
    asked = []

    def operation() -> None:
        asked.append(1)
        raise error

    with pytest.raises(type(error)):
        faults.retried(operation)
    assert (len(asked), waits) == (1, [])


def test_attempts_are_bounded_and_waits_grow(waits: list[float]) -> None:
    def operation() -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        faults.retried(operation)
    assert len(waits) == faults.ATTEMPTS - 1
    assert all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits))


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (s3_error(429, "429", **{"retry-after": "7"}), 7),
        (http_error(429, **{"Retry-After": "12"}), 12),
        (caused(FileNotFoundError(), http_error(503, **{"retry-after": "3"})), 3),
        (http_error(429, **{"Retry-After": "86400"}), 86400),
        (http_error(429, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0),
        (ConnectionResetError(), 0),
    ],
)
def test_retry_after_is_read_wherever_a_library_puts_it(error: Exception, seconds: float) -> None:
    assert faults.retry_after(error) == seconds


@pytest.mark.parametrize("error", [http_error(429, **{"Retry-After": "86400"}), s3_error(503, "SlowDown", **{"retry-after": "86400"})])
def test_a_wait_of_a_day_is_not_begun(error: Exception, waits: list[float]) -> None:
    asked = []

    def operation() -> None:
        asked.append(1)
        raise error

    with (
        pytest.raises(UserError, match=r"file: its server asks to wait 86400 s \((429|503).*\), more than the 600 s"),
        faults.explained("s3://b/file"),
    ):
        faults.retried(operation)
    assert (len(asked), waits) == (1, [])


@pytest.mark.parametrize(
    "url",
    [
        "https://alice:h@ush@host/file",
        "https://hush@host/file",
        "s3://alice:8/hush@bucket/file",
        "s3://alice:h/ush@bucket/file",
        "s3a://alice:hush@bucket",
        "gs://alice@bucket/file",
        "simplecache::s3://alice:h/ush@bucket/file",
        "hf://alice:hush@datasets/x",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError, match="carries a user, password or key, which none may; set ") as raised:
        faults.refuse_secrets(url)
    for said in (str(raised.value), faults.shown(f"'{url}' is odd")):
        assert "alice" not in said
        assert "ush" not in said


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b:c/file",
        "http://127.0.0.1:8080/a@b",
        "http://[::1]:80/a",
        "hf://datasets/LEAP/x@main/file",
        "hf://gpt2@main",
        "abfs://container@account.dfs.core.windows.net/x",
        "memory://a@b/c",
        "file:///a@b",
        "/a:b@c",
        "relative/a@b",
    ],
)
def test_an_at_sign_elsewhere_is_no_credential(url: str) -> None:
    faults.refuse_secrets(url)


def test_the_signature_of_a_web_address_is_not_shown() -> None:
    signed = "https://host:8080/data/file.nc?X-Amz-Signature=abcdef&x=1"
    assert faults.shown(signed) == "https://host:8080/data/file.nc"
    assert faults.shown(f"404 for '{signed}' ({signed})") == "404 for 'https://host:8080/data/file.nc' (https://host:8080/data/file.nc)"
    assert faults.shown("s3://bucket/what?") == "s3://bucket/what?"


def test_no_sentence_shows_a_password() -> None:
    with pytest.raises(UserError) as raised, faults.explained("https://me:secret@host/file"):
        raise OSError("https://me:secret@host/file is odd")
    assert "secret" not in str(raised.value)
    assert "https://host/file" in str(raised.value)


def test_errors_that_are_not_of_storage_pass() -> None:
    with pytest.raises(KeyError), faults.explained("s3://bucket/file"):
        raise KeyError("a mistake of ours")


def test_a_server_of_whole_files_is_told_of_with_what_helps() -> None:
    with pytest.raises(UserError, match=r"host/a: its server gives only whole files.*`leapray fetch`"), faults.explained("http://host/a"):
        raise ValueError(
            "The HTTP server doesn't appear to support range requests. Only reading this file from the beginning is supported."
        )
