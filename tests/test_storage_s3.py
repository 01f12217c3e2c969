"""Object storage over HTTP on loopback: whole or not at all, patient with trouble, plain about mistakes."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from leapray import cli, faults, storage
from leapray.errors import UserError
from tests.s3_server import Endpoint

CONTENT = bytes(range(256)) * 64
TROUBLES: dict[str, Callable[[Endpoint], None]] = {
    "429": lambda s3: s3.answer(429, "TooManyRequests", times=2, Retry_After="7"),
    "500": lambda s3: s3.answer(500, "InternalError", times=2),
    "503": lambda s3: s3.answer(503, "SlowDown", times=2),
    "reset": lambda s3: s3.disturb("reset", times=2),
    "lost answer": lambda s3: s3.disturb("lost", times=2),
    "cut body": lambda s3: s3.disturb("cut", times=2, method="GET"),
    "wrong length": lambda s3: s3.disturb("long", times=2, method="GET"),
    "slow body": lambda s3: s3.disturb("slow", times=2),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_reading_writing_and_listing_outlast_trouble(
    trouble: Callable[[Endpoint], None], s3: Endpoint, bucket: str, waits: list[float]
) -> None:
    url = f"{bucket}/folder/file.bin"
    trouble(s3)
    storage.write_bytes(url, CONTENT)
    s3.calm()
    trouble(s3)
    assert storage.read_bytes(url) == CONTENT
    s3.calm()
    trouble(s3)
    assert storage.list_sizes(bucket) == {url: len(CONTENT)}
    s3.calm()
    trouble(s3)
    assert storage.exists(url)
    s3.calm()
    with storage.open_input(url) as file:
        trouble(s3)
        assert file.seek(1000) == 1000
        assert (file.read(5), file.read()) == (CONTENT[1000:1005], CONTENT[1005:])


def test_retry_after_is_waited_for(s3: Endpoint, bucket: str, waits: list[float]) -> None:
    s3.answer(429, "TooManyRequests", times=2, Retry_After="7")
    storage.write_bytes(f"{bucket}/file", CONTENT)
    assert waits == [7, 7]


def test_parquet_is_read_through_trouble(s3: Endpoint, bucket: str, waits: list[float]) -> None:
    table = pa.table({f"column_{i}": np.random.default_rng(i).normal(size=500) for i in range(20)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(f"{bucket}/file.parquet", buffer.getvalue())
    with storage.open_input(f"{bucket}/file.parquet") as file:
        s3.answer(503, "SlowDown", times=2, method="GET")
        s3.disturb("cut", times=2, method="GET")
        assert pq.ParquetFile(file).read() == table


def test_what_keeps_failing_is_given_up_with_a_sentence(s3: Endpoint, bucket: str, waits: list[float]) -> None:
    s3.answer(429, "TooManyRequests", times=1000)
    with pytest.raises(UserError, match=f"^{bucket}/x: still fails after {faults.ATTEMPTS} attempts \\(429\\); check AWS_ENDPOINT_URL"):
        storage.read_bytes(f"{bucket}/x")
    assert len(s3.requests) == faults.ATTEMPTS


def test_an_object_appears_whole_or_not_at_all(s3: Endpoint, bucket: str, waits: list[float]) -> None:
    storage.write_bytes(f"{bucket}/file", b"old")
    with pytest.raises(ZeroDivisionError), storage.atomic_file(f"{bucket}/file") as file:
        file.write(CONTENT + bytes(1 // len(CONTENT[:0])))
    s3.answer(403, "AccessDenied", times=1000, method="PUT")
    with pytest.raises(UserError, match="access is denied"):
        storage.write_bytes(f"{bucket}/file", CONTENT)
    s3.calm()
    assert storage.read_bytes(f"{bucket}/file") == b"old"
    assert storage.list_files(bucket) == [f"{bucket}/file"]


def test_a_large_object_goes_up_in_parts_and_none_is_left_behind(s3: Endpoint, bucket: str, waits: list[float]) -> None:
    content = CONTENT * 6700
    s3.disturb("reset", times=2, method="PUT", path="partNumber=2")
    s3.answer(429, "TooManyRequests", times=1, method="PUT", path="partNumber=3")
    storage.write_bytes(f"{bucket}/large", content)
    assert storage.read_bytes(f"{bucket}/large") == content
    assert s3fs.S3FileSystem(use_listings_cache=False).list_multipart_uploads(bucket.removeprefix("s3://")) == []


def test_a_listing_shows_what_others_wrote_since(s3: Endpoint, bucket: str) -> None:
    storage.write_bytes(f"{bucket}/a/1", b"1")
    assert storage.list_files(f"{bucket}/a") == [f"{bucket}/a/1"]
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{bucket}/a/2", b"22")
    assert storage.list_sizes(f"{bucket}/a") == {f"{bucket}/a/1": 1, f"{bucket}/a/2": 2}
    assert storage.exists(f"{bucket}/a/2")


def test_removing_is_done_once_and_for_all(s3: Endpoint, bucket: str, waits: list[float]) -> None:
    storage.write_bytes(f"{bucket}/a/1", b"1")
    storage.write_bytes(f"{bucket}/b", b"1")
    s3.disturb("lost", method="POST")
    storage.remove(f"{bucket}/a")
    storage.remove(f"{bucket}/a")
    assert storage.list_files(bucket) == [f"{bucket}/b"]


def test_a_fingerprint_is_the_stores_own_and_costs_one_request(s3: Endpoint, bucket: str) -> None:
    for name, content in (("a/file", CONTENT), ("b/file", CONTENT), ("c/file", CONTENT[::-1])):
        storage.write_bytes(f"{bucket}/{name}", content)
    s3.calm()
    one, same, other = (storage.fingerprint(f"{bucket}/{name}/file") for name in "abc")
    assert one == same != other
    assert [method for method, _ in s3.requests] == ["HEAD"] * 3


def test_a_fingerprint_of_many_files_is_one_listing(s3: Endpoint, bucket: str) -> None:
    for name in "cab":
        storage.write_bytes(f"{bucket}/folder/{name}", CONTENT + name.encode())
    one_by_one = storage.fingerprint(*storage.list_files(f"{bucket}/folder"))
    s3.calm()
    assert storage.fingerprint_below(f"{bucket}/folder") == one_by_one
    assert [method for method, _ in s3.requests] == ["GET"]


def test_marks_are_the_stores_own_and_come_with_the_listing(s3: Endpoint, bucket: str) -> None:
    for name, content in (("a/file", CONTENT), ("b/file", CONTENT), ("c/file", CONTENT[::-1])):
        storage.write_bytes(f"{bucket}/{name}", content)
    s3.calm()
    one, same, other = storage.list_data(bucket.replace("s3://", "s3a://"), lambda name: True).marks.values()
    assert one == same != other
    assert len(s3.requests) == 1


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence that a verb ends with, having exited with status 2."""
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr("sys.argv", ["leapray", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    s3fs.S3FileSystem.clear_instance_cache()
    printed = capsys.readouterr().err.strip()
    assert exited.value.code == 2, printed
    assert len(printed.splitlines()) == 1
    return printed


@pytest.fixture
def verbs(bucket: str, tmp_path: Path) -> list[list[object]]:
    """One that lists a bucket and one that reads a file of it."""
    return [["convert", f"{bucket}/raw", tmp_path / "flat"], ["recipe", "check", f"{bucket}/recipe.yaml"]]


def test_a_wrong_bucket_is_named(s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["convert", "s3://no-such-bucket/raw", tmp_path], ["recipe", "check", "s3://no-such-bucket/raw"]):
        sentence = refused(monkeypatch, capsys, *arguments)
        assert sentence.startswith("error: s3://no-such-bucket/raw: there is no such bucket; check its name, AWS_ENDPOINT_URL")


def test_wrong_credentials_are_named_and_not_shown(
    verbs: list[list[object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    for arguments in verbs:
        sentence = refused(monkeypatch, capsys, *arguments)
        assert ("the credentials are refused (InvalidAccessKeyId)" in sentence) or ("by wrong credentials" in sentence)
        assert "AWS_SECRET_ACCESS_KEY" in sentence
        assert "hidden" not in sentence
        assert "someone" not in sentence


def test_a_wrong_signature_is_named(
    s3: Endpoint, verbs: list[list[object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.answer(403, "SignatureDoesNotMatch")
    assert "the credentials are refused (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID" in refused(monkeypatch, capsys, *verbs[0])


def test_missing_credentials_are_named(
    verbs: list[list[object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for arguments in verbs:
        assert "no credentials were found; set AWS_ACCESS_KEY_ID" in refused(monkeypatch, capsys, *arguments)


def test_an_endpoint_that_is_down_is_named(
    verbs: list[list[object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for arguments in verbs:
        sentence = refused(monkeypatch, capsys, *arguments)
        assert "still fails after 6 attempts (Could not connect to the endpoint URL" in sentence
        assert "check AWS_ENDPOINT_URL" in sentence


def test_an_endpoint_without_a_scheme_is_named_at_once(
    verbs: list[list[object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    for arguments in verbs:
        sentence = refused(monkeypatch, capsys, *arguments)
        assert "AWS_ENDPOINT_URL" in sentence
        assert "http://localhost:9000" in sentence
    assert not waits
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        storage.write_bytes("s3://bucket/file", CONTENT)
