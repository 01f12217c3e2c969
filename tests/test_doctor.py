"""The doctor finds planted faults, each with its remedy: in this machine, in real places and ports, and in a real Ray."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import s3fs
import torch
import yaml

from leapray import cli, doctor, doctor_places, storage
from leapray.climsim.calendar import file_name
from leapray.cluster import capacity, preflight
from leapray.data.check import check
from leapray.data.findings import Finding, Verdict
from leapray.data.prepare import prepare
from leapray.doctor import check_machine, check_start, examine, judge_recipe
from leapray.doctor_places import Place, Visit, judge_visits, marked, visit, visit_all
from leapray.errors import UserError
from leapray.recipe import Recipe, parse_recipe
from tests.official_layout import write_pair
from tests.samples import recipe_values, sample_recipe, write_flat

GB = 10**9
GPU = "NVIDIA H100 80GB HBM3, 81559 MiB, 570.1"
OURS = {"python": "3.11.7", "leapray": "0.1.0 (0a1b2c3d)", "ray": "2.60.0", "torch": "2.13.0", "pyarrow": "26.0.1"}
HAVE = {"CPU": 8.0, "memory": 40e9, "object_store_memory": 10e9}
FOUND: dict[str, Any] = {"versions": OURS, "gpus": 0, "findings": [("ok", "8 cores")], "unseen": []}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 cores with room everywhere and no GPU, on which Ray would be started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(doctor, "gpus", lambda: [])
    monkeypatch.setattr(preflight, "memory", lambda: (64 * GB, 50 * GB))
    monkeypatch.setattr(preflight, "shared_free", lambda: 30 * GB)
    monkeypatch.setattr(preflight, "obstacles", lambda: iter(()))
    disk(monkeypatch, 200 * GB, 100 * GB)


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=free))


def bad(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict is not Verdict.OK]


def only(findings: Iterable[Finding], verdict: Verdict, *words: str) -> None:
    """One finding is not good, of this verdict, and its sentence holds the words."""
    (found,) = bad(findings)
    assert found.verdict is verdict
    for word in words:
        assert word in found.text


def recipe(root: Path, **sections: Any) -> Recipe:
    values = recipe_values(root)
    for section, given in sections.items():
        values[section] = {**values.get(section, {}), **given}
    return parse_recipe(values)


def test_nothing_is_wrong_with_what_is_good(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", stop="0001-05", steps=1)
    assert bad(examine()) == []
    assert bad(examine(recipe(tmp_path))) == []


def test_shared_memory_that_is_too_small_for_the_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "shared_free", lambda: 64 << 20)
    only(check_start(), Verdict.NOTE, "10.0 GB", "67.1 MB free", "--shm-size=11g")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 200 * GB, 1 * GB)
    temporary, ray = bad(check_machine(None))
    assert {temporary.verdict, ray.verdict} == {Verdict.WRONG}
    assert "set TMPDIR" in temporary.text
    assert "set RAY_TMPDIR" in ray.text
    # enough for files, but Ray leaves 5 % of a disk free
    disk(monkeypatch, 200 * GB, 9 * GB)
    only(check_machine(None), Verdict.WRONG, "RAY_TMPDIR")


def test_what_keeps_ray_from_being_started_is_told_unless_a_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "64 open files to a process; set `ulimit -n 65536`"
    monkeypatch.setattr(preflight, "obstacles", lambda: iter([why]))
    only(examine(), Verdict.WRONG, "Ray cannot be started", why)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    assert not any(why in finding.text for finding in examine())


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: [GPU, GPU])
    for cuda, count, verdict, words in (
        (None, 0, Verdict.WRONG, "built without CUDA"),
        ("13.0", 0, Verdict.NOTE, "update the driver"),
        ("13.0", 2, Verdict.OK, f"2 x {GPU}"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        (told,) = [finding for finding in check_machine(None) if "H100" in finding.text]
        assert told.verdict is verdict
        assert words in told.text


def test_memory_that_a_shuffle_would_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory", lambda: (64 * GB, 2 * GB))
    only(check_machine(recipe(tmp_path, data={"shuffle_rows": 65536})), Verdict.NOTE, "8 tasks x 728 MB = 5.83 GB", "data.shuffle_rows")
    assert bad(check_machine(recipe(tmp_path, data={"stream_from": "flat", "shuffle_rows": 65536}))) == []


def test_a_working_directory_that_hides_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calendar.py").write_text("")
    monkeypatch.chdir(tmp_path)
    only(examine(), Verdict.WRONG, "calendar.py")


def test_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = recipe(tmp_path, resources={"workers": 2, "use_gpu": True})
    monkeypatch.setattr(capacity, "_gpus", lambda: 1)
    only(judge_recipe(greedy, ()), Verdict.WRONG, "2 workers x 1 GPU = 2 GPUs, and this machine has 1", "RAY_ADDRESS")
    monkeypatch.setattr(capacity, "_gpus", lambda: 2)
    assert bad(judge_recipe(greedy, ())) == []
    only(judge_recipe(recipe(tmp_path, resources={"workers": 8, "cpus_per_worker": 2}), ()), Verdict.WRONG, "16 CPUs")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert list(judge_recipe(greedy, ())) == []


def test_nodes_that_a_recipe_asks_for_by_what_they_were_started_with(tmp_path: Path) -> None:
    trainer = recipe(tmp_path, resources={"workers": 1, "worker_resources": {"trainer": 1, "accelerator_type:H100": 0.001}})
    only(judge_recipe(trainer, ()), Verdict.WRONG, "no node has 1 trainer, as given to ray start", "RAY_ADDRESS")
    data = recipe(tmp_path, resources={"data_nodes": {"role": "data"}})
    only(judge_recipe(data, ()), Verdict.WRONG, "no node has the labels role=data", "RAY_ADDRESS")


def test_what_a_recipe_needs_beside_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(judge_recipe(recipe(tmp_path, training={"precision": "fp16"}), ()), Verdict.WRONG, "fp16 needs a GPU", "resources.use_gpu=true")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    only(judge_recipe(recipe(tmp_path, training={"trackers": ["mlflow"]}), ()), Verdict.WRONG, "pip install 'leapray[mlflow]'")


def test_a_disk_too_small_for_the_shards(tmp_path: Path) -> None:
    def of(free: int) -> list[Finding]:
        source = Visit(Place("data.sources.low_res.path", "/flat", False), None, 200 * GB)
        prepared = Visit(Place("data.prepared", "/prepared", True), None, 0, free)
        return list(judge_recipe(recipe(tmp_path), (source, prepared)))

    assert bad(of(300 * GB)) == []
    only(of(150 * GB), Verdict.NOTE, "about 100 GB", "the shuffle")
    only(of(90 * GB), Verdict.WRONG, "90.0 GB free", "make room")


def test_places_are_written_and_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for url in ("there", "not/made/yet"):
        seen = visit(Place("training.run", str(tmp_path / url), True))
        assert (seen.trouble, seen.free) == (None, 100 * GB)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    key = "training.run"
    only(judge_visits([visit(Place(key, str(tmp_path / "file/run"), True))]), Verdict.WRONG, "is a file", f"set {key} to")
    found = judge_visits([visit(Place(key, "/proc/leapray/run", True))])
    only(found, Verdict.WRONG, f"{key} cannot be used: /proc: cannot be written")
    source = visit(Place("data.sources.a.path", str(tmp_path / "nothing"), False))
    only(judge_visits([source]), Verdict.WRONG, "files are there", "set data.sources.a.path to where the files are")
    only(judge_visits([source], prepared=True), Verdict.NOTE, "files are there")
    only(judge_visits([visit(Place("training.start.model", str(tmp_path / "nothing"), False))]), Verdict.WRONG, "nothing is there")


def test_the_remedy_names_the_place_and_not_the_file_that_tried_it() -> None:
    found = visit(Place("training.run", "/proc/leapray/run", True))
    assert ".tmp-doctor" not in str(found.trouble)


def test_a_source_of_netcdf_pairs_must_be_converted_first_and_its_incomplete_pairs_are_counted(tmp_path: Path) -> None:
    source = Place("data.sources.low_res.path", str(tmp_path), False)
    first = f"run `leapray convert {tmp_path} DEST` first and set data.sources.low_res.path to DEST"
    for step in range(3):
        write_pair(tmp_path, step, columns=1)
    (finding,) = judge_visits([visit(source)])
    only([finding], Verdict.WRONG, f"{tmp_path} holds 3 netCDF pairs", first)
    assert "skip" not in finding.text
    Path(write_pair(tmp_path, 3, columns=1).mlo).unlink()
    Path(write_pair(tmp_path, 4, columns=1).mli).unlink()
    words = ["holds 3 netCDF pairs", "2 steps lack", f"{file_name('mli', 3)} (no mlo), {file_name('mlo', 4)} (no mli)", "--incomplete skip"]
    only(judge_visits([visit(source)]), Verdict.WRONG, first, *words)
    # flat files in the same folder are what is read, whatever lies beside them
    shutil.copytree(tmp_path / "0001-02", tmp_path / "copy")
    only(judge_visits([visit(source)]), Verdict.WRONG, "the same step is also in")
    write_flat(tmp_path, stop="0001-03", steps=1)
    only(judge_visits([visit(source)]), Verdict.NOTE, "passed over 16 files")


@pytest.mark.ray
def test_sources_are_not_needed_where_their_data_is_prepared(ray_cluster: None, tmp_path: Path) -> None:
    small = sample_recipe(tmp_path)
    write_flat(tmp_path / "flat", stop="0001-05")
    prepare(small)
    shutil.rmtree(tmp_path / "flat")
    only(examine(small), Verdict.NOTE, "data.sources.low_res.path")
    other = small.model_copy(update={"data": small.data.model_copy(update={"rows_per_shard": 7})})
    only(examine(other), Verdict.WRONG, "data.sources.low_res.path")


def test_incomplete_pairs_in_a_bucket_are_counted(bucket: str, tmp_path: Path) -> None:
    pair, lonely = write_pair(tmp_path, 0, columns=1), write_pair(tmp_path, 1, columns=1)
    for path in (pair.mli, pair.mlo, lonely.mlo):
        storage.write_bytes(f"{bucket}/raw/{Path(path).name}", Path(path).read_bytes())
    found = [visit(Place("data.sources.low_res.path", f"{bucket}/raw", False))]
    only(judge_visits(found), Verdict.WRONG, f"leapray convert {bucket}/raw DEST", "holds 1 netCDF pair and", "(no mli)")
    told = [finding.text for finding in check(f"{bucket}/raw") if "1 step lacks" in finding.text]
    assert len(told) == 1
    assert lonely.mlo.rpartition("/")[2] in told[0]


def test_a_place_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever = threading.Event()
    monkeypatch.setattr(doctor_places, "visit", lambda place: for_ever.wait())
    (seen,) = visit_all([Place("training.run", "s3://bucket/run", True)], patience=0.01)
    for_ever.set()
    assert "s3://bucket/run: did not answer within 0.01 s" in str(seen.trouble)


def test_a_local_place_is_told_from_another_of_the_same_name(tmp_path: Path) -> None:
    seen = visit_all([Place("training.run", str(tmp_path / "run"), True), Place("data.sources.a.path", str(tmp_path), False)])
    with marked(seen) as marks:
        assert list(marks) == ["training.run"]
        assert [str(path) for path in tmp_path.iterdir()] == [marks["training.run"]]
    assert list(tmp_path.iterdir()) == []


def test_places_in_a_bucket(bucket: str) -> None:
    place = Place("data.prepared", f"{bucket}/prepared", True)
    assert visit(place) == Visit(place)
    assert storage.list_folder(bucket) == ({}, [])
    lost = visit(Place("data.prepared", "s3://no-such-bucket-here/prepared", True))
    assert "there is no such bucket" in str(lost.trouble)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["leapray", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


@pytest.fixture
def fresh_s3() -> Iterator[None]:
    """S3 file systems are made anew in the test, by its own environment."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def written(root: Path, **places: str) -> Path:
    values = recipe_values(root)
    values["data"]["prepared"] = places.get("prepared", values["data"]["prepared"])
    values["training"]["run"] = places.get("run", values["training"]["run"])
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_endpoint_that_refuses_is_found_and_no_secret_is_told(
    fresh_s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAHIDDEN", "AWS_SECRET_ACCESS_KEY": "HIDDENSECRET", "AWS_SESSION_TOKEN": "HIDDENTOKEN"}
    address = f"http://127.0.0.1:{closed_port()}"
    for name, value in {**secrets, "RAY_AUTH_TOKEN": "HIDDENRAY", "AWS_ENDPOINT_URL": address.replace("//", "//me:HIDDENPASS@")}.items():
        monkeypatch.setenv(name, value)
    write_flat(tmp_path / "flat", stop="0001-05", steps=1)
    status = command(monkeypatch, written(tmp_path, prepared="s3://bucket/prepared"))
    out, err = capsys.readouterr()
    assert status == 2
    wrong = [line for line in out.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 1
    assert f"data.prepared cannot be used: s3://bucket/prepared: nothing answers at {address} (Connection refused)" in wrong[0]
    assert "AWS_ENDPOINT_URL" in wrong[0]
    assert err.startswith("error: 1 of ")
    assert "HIDDEN" not in out + err


def test_a_bucket_without_credentials(fresh_s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(doctor_places, "_s3_silence", lambda url: None)
    only(
        judge_visits([visit(Place("data.prepared", "s3://bucket/prepared", True))]),
        Verdict.WRONG,
        "no credentials were found; set AWS_ACCESS_KEY_ID",
    )


def test_a_good_recipe_ends_with_status_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_flat(tmp_path / "flat", stop="0001-05", steps=1)
    assert command(monkeypatch, written(tmp_path)) == 0
    assert "nothing is wrong" in capsys.readouterr().out.splitlines()[-1]
    assert command(monkeypatch, written(tmp_path, run="/proc/leapray/run")) == 2
    assert "set training.run to" in capsys.readouterr().out


def test_a_look_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[int, int]:
        raise RuntimeError("no such sensor")

    found = list(examine())
    monkeypatch.setattr(doctor, "gpus", broken)
    only(examine(), Verdict.WRONG, "no such sensor", "please report")
    assert list(examine())[-1] == found[-1]


def test_a_head_that_does_not_answer_is_told_at_once() -> None:
    # in a process of its own, since this one may be on the cluster of other tests
    environment = os.environ | {"RAY_ADDRESS": (address := f"127.0.0.1:{closed_port()}"), "COLUMNS": "400"}
    command = "import sys; sys.argv[1:] = ['doctor']; from leapray.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    for word in (address, "answers there", "Connection refused", "ray start --head", "unset RAY_ADDRESS"):
        assert word in told


def test_help_is_answered_without_ray_and_torch() -> None:
    script = "import sys, leapray.cli, leapray.doctor; print(*(name for name in ('torch', 'ray') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""


def of_node(have: dict[str, float] | None = None, **changed: Any) -> list[Finding]:
    from leapray.doctor_nodes import judge_node

    return list(judge_node("node two", {**HAVE, **(have or {})}, {**FOUND, **changed}, OURS))


def test_a_good_node_has_nothing_to_tell() -> None:
    assert bad(of_node()) == []


def test_versions_of_a_node_that_differ_from_the_drivers() -> None:
    def of(**versions: str | None) -> list[Finding]:
        return of_node(versions={**OURS, **versions})

    only(of(leapray="0.1.0 (ffffffff)"), Verdict.WRONG, "node two", "leapray 0.1.0 (ffffffff) (here 0.1.0 (0a1b2c3d))", "install the same")
    only(of(pyarrow=None), Verdict.WRONG, "pyarrow missing")
    only(of(torch="2.13.1"), Verdict.NOTE, "torch 2.13.1 (here 2.13.0)")


def test_nodes_that_lack_something() -> None:
    only(of_node({"object_store_memory": 100e6}), Verdict.WRONG, "node two", "object store is too small", "--object-store-memory")
    only(of_node(trouble="no task was answered within 90 s"), Verdict.WRONG, "no task was answered", "log", "--working-dir .")
    only(of_node({"GPU": 1}), Verdict.NOTE, "Ray counts 1 GPUs, and the driver 0", "--num-gpus")
    only(of_node(unseen=["training.run"]), Verdict.WRONG, "training.run is a local path", "s3://")
    only(of_node(findings=[("ok", "fine"), ("wrong", "/tmp is full")]), Verdict.WRONG, "node two: /tmp is full")


@pytest.mark.ray
def test_every_node_of_a_real_cluster_is_asked(ray_cluster: None, tmp_path: Path) -> None:
    from leapray.doctor_nodes import judge_cluster

    found = list(judge_cluster(recipe(tmp_path), visit_all([Place("training.run", str(tmp_path / "run"), True)])))
    texts = "\n".join(finding.text for finding in found)
    assert "1 node, 8 CPUs" in texts
    assert "this machine has" in texts
    # the cluster of the tests wants a token
    assert "without a token" not in texts
    assert "versions differ" not in texts
    wide = recipe(tmp_path, resources={"workers": 8, "cpus_per_worker": 2})
    assert any(finding.verdict is Verdict.WRONG and "16 CPUs" in finding.text for finding in judge_cluster(wide, ()))


def test_findings_are_counted() -> None:
    with pytest.raises(UserError, match=r"1 of 3 findings are wrong, beside 1 note;"):
        doctor.require_good([doctor.ok("a"), doctor.note("b"), doctor.wrong("c")])
    assert doctor.require_good([doctor.ok("a")]) == "1 findings: nothing is wrong, 0 notes"
