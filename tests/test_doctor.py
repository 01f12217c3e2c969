"""The doctor finds planted faults, each with its remedy: in facts that are injected, and in real places, ports and a real Ray."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from leapray import cli, doctor, storage
from leapray.climsim.calendar import file_name
from leapray.data.check import check
from leapray.data.findings import Finding, Verdict
from leapray.doctor.facts import Cluster, Disk, Gpu, Machine, Node, Place, Road, Visit
from leapray.doctor.judging import judge_cluster, judge_machine, judge_road, judge_visits
from leapray.doctor.places import marked, road, unseen, visit, visit_all
from leapray.doctor.recipes import judge_recipe
from leapray.errors import UserError
from leapray.recipe import Recipe, parse_recipe
from tests.official_layout import write_pair
from tests.samples import recipe_values, write_flat

GB = 10**9
VERSIONS = {"python": "3.11.7", "leapray": "0.1.0 (0a1b2c3d)", "ray": "2.60.0", "torch": "2.13.0", "pyarrow": "26.0.1"}
MACHINE = Machine(
    name="here",
    versions=VERSIONS,
    cores=8,
    memory=64 * GB,
    available=50 * GB,
    shared=Disk("/dev/shm", 32 * GB, 30 * GB),
    temporary=Disk("/tmp", 200 * GB, 100 * GB),
    ray_temporary=Disk("/tmp", 200 * GB, 100 * GB),
    open_files=65536,
)
H100 = Gpu("NVIDIA H100", 80 * GB, "570.1", 9.0)
GPU_MACHINE = replace(MACHINE, gpus=(H100,), torch_gpus=1, torch_cuda="12.8")
NODE = Node("one (abc123)", 8, 0, 40 * GB, 10 * GB, versions=VERSIONS, machine=MACHINE)
CLUSTER = Cluster("10.0.0.1:6379", (NODE, replace(NODE, name="two (def456)")), free_cpus=16, answers_strangers=False)
ROAD = Road("env", "us-east-1", "http://store:9000", named="AWS_ENDPOINT_URL")


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


def of_machine(**changed: Any) -> list[Finding]:
    return list(judge_machine(replace(MACHINE, **changed), starts_ray=True))


def of_recipe(wanted: Recipe, machine: Machine = MACHINE, installed: Iterable[str] = (), cluster: Cluster | None = None) -> list[Finding]:
    return list(judge_recipe(wanted, machine, (), set(installed), cluster))


def test_nothing_is_wrong_with_what_is_good(tmp_path: Path) -> None:
    assert bad(of_machine()) == []
    assert bad(judge_road(ROAD, wanted=True)) == []
    assert bad(judge_cluster(CLUSTER, MACHINE)) == []
    assert bad(of_recipe(recipe(tmp_path))) == []


def test_shared_memory_that_is_too_small_for_the_object_store() -> None:
    only(of_machine(shared=Disk("/dev/shm", 64 << 20, 64 << 20)), Verdict.NOTE, "wants 10.0 GB", "67.1 MB free", "--shm-size=11g")


def test_a_full_disk() -> None:
    full = Disk("/tmp", 200 * GB, 1 * GB)
    words = " / ".join(finding.text for finding in bad(of_machine(temporary=full, ray_temporary=full)))
    assert "make room or set TMPDIR" in words
    assert "95% full; make room or set RAY_TMPDIR" in words
    only(of_machine(ray_temporary=Disk("/spill", 200 * GB, 9 * GB)), Verdict.WRONG, "/spill", "RAY_TMPDIR")


def test_what_keeps_ray_from_being_started() -> None:
    why = "64 open files to a process; set `ulimit -n 65536`"
    only(of_machine(obstacles=(why,), open_files=64), Verdict.WRONG, "Ray cannot be started", why)
    assert bad(judge_machine(replace(MACHINE, obstacles=(why,)), starts_ray=False)) == []


def test_too_few_open_files() -> None:
    only(of_machine(open_files=1024), Verdict.WRONG, "1024 open files", "ulimit -n 65536")


def test_a_gpu_that_torch_cannot_use() -> None:
    only(of_machine(gpus=(H100,)), Verdict.WRONG, "built without CUDA", "install the CUDA build")
    only(of_machine(gpus=(H100,), torch_cuda="13.0"), Verdict.NOTE, "CUDA 13.0 sees none", "update the driver")


def test_no_credentials_and_no_endpoint() -> None:
    only(judge_road(replace(ROAD, credentials=None), wanted=True), Verdict.WRONG, "no credentials", "set AWS_ACCESS_KEY_ID")
    refused = replace(ROAD, trouble="Connection refused")
    only(judge_road(refused, wanted=True), Verdict.WRONG, "http://store:9000 (Connection refused)", "AWS_ENDPOINT_URL")
    only(judge_road(refused, wanted=False), Verdict.NOTE, "AWS_ENDPOINT_URL")
    amazon = replace(ROAD, region=None, endpoint="https://s3.amazonaws.com", named=False)
    only(judge_road(amazon, wanted=True), Verdict.NOTE, "AWS_DEFAULT_REGION")


def test_versions_of_a_node_that_differ_from_the_drivers() -> None:
    def of(**versions: str | None) -> list[Finding]:
        return list(judge_cluster(replace(CLUSTER, nodes=(NODE, replace(NODE, name="two", versions=VERSIONS | versions))), MACHINE))

    only(of(torch="2.9.1"), Verdict.WRONG, "node two", "torch 2.9.1 (driver: 2.13.0)", "install the driver's versions")
    only(of(leapray="0.1.0 (ffffffff)"), Verdict.WRONG, "leapray 0.1.0 (ffffffff)")
    only(of(pyarrow=None), Verdict.WRONG, "pyarrow missing")
    only(of(torch="2.13.1"), Verdict.NOTE, "differ a little")


def test_nodes_that_lack_something() -> None:
    def of(**changed: Any) -> list[Finding]:
        return list(judge_cluster(replace(CLUSTER, nodes=(NODE, replace(NODE, name="two", **changed))), MACHINE))

    only(of(object_store=100e6), Verdict.WRONG, "node two", "object store is too small", "--object-store-memory")
    only(of(versions=None, machine=None, silence="no task was answered within 90 s"), Verdict.WRONG, "no task was answered", "log")
    only(of(lacking="No module named 'leapray'", machine=None), Verdict.WRONG, "cannot be imported", "--working-dir .")
    only(of(gpus=1), Verdict.NOTE, "Ray counts 1 GPUs, and the Nvidia driver tells of 0", "--num-gpus")
    only(of(unseen=("training.run",)), Verdict.WRONG, "training.run is a local path", "with 2 nodes", "s3:// or a shared disk")
    place = Place("data.prepared", "/data", True)
    only(
        of(visits=(Visit(place, True, "/data: read-only"),)),
        Verdict.WRONG,
        "node two: data.prepared cannot be written to: /data: read-only",
    )


def test_a_cluster_that_is_taken_or_open() -> None:
    only(judge_cluster(replace(CLUSTER, free_cpus=0), MACHINE), Verdict.NOTE, "all of its 16 CPUs are taken", "add nodes")
    only(judge_cluster(replace(CLUSTER, answers_strangers=True), MACHINE), Verdict.NOTE, "no token", "RAY_AUTH_MODE=token")


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    greedy = recipe(tmp_path, resources={"workers": 2, "use_gpu": True})
    only(of_recipe(greedy, GPU_MACHINE), Verdict.WRONG, "2 workers x 1 GPU = 2 GPUs, and this machine has 1", "resources.use_gpu=false")
    only(of_recipe(greedy, cluster=CLUSTER), Verdict.WRONG, "the cluster has 0", "a larger cluster")
    gpu_node = replace(NODE, gpus=2, machine=replace(GPU_MACHINE, gpus=(H100, H100)))
    assert bad(of_recipe(greedy, cluster=replace(CLUSTER, nodes=(NODE, gpu_node)))) == []


def test_nodes_that_a_recipe_asks_for_by_what_they_were_started_with(tmp_path: Path) -> None:
    trainer = recipe(tmp_path, resources={"workers": 1, "worker_resources": {"trainer": 1, "accelerator_type:H100": 0.001}})
    data = recipe(tmp_path, resources={"data_nodes": {"role": "data"}})
    only(of_recipe(trainer), Verdict.WRONG, "no node has 1 trainer, as given to ray start", "RAY_ADDRESS")
    only(of_recipe(data), Verdict.WRONG, "no node has the labels role=data", "RAY_ADDRESS")
    only(of_recipe(trainer, cluster=CLUSTER), Verdict.WRONG, "no node has 1 trainer, 0.001 accelerator_type:H100, as given to ray start")
    only(of_recipe(data, cluster=CLUSTER), Verdict.WRONG, "no node has the labels role=data", "ray start --labels role=data")
    started = replace(NODE, resources={"trainer": 2, "accelerator_type:H100": 1}, labels={"role": "data", "zone": "a"})
    for wanted in (trainer, data):
        assert bad(of_recipe(wanted, cluster=replace(CLUSTER, nodes=(NODE, started)))) == []
        assert bad(of_recipe(wanted, cluster=replace(CLUSTER, grows=True))) == []
    # only the nodes that have it are counted
    wide = recipe(tmp_path, resources={"workers": 2, "cpus_per_worker": 8, "worker_resources": {"trainer": 1}})
    only(of_recipe(wide, cluster=replace(CLUSTER, nodes=(NODE, started))), Verdict.WRONG, "resources.workers")


def test_a_precision_that_the_gpu_has_no_units_for(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, resources={"workers": 1, "use_gpu": True}, training={"precision": "bf16"})
    assert bad(of_recipe(wanted, GPU_MACHINE)) == []
    old = replace(GPU_MACHINE, gpus=(Gpu("Tesla V100", 32 * GB, "570.1", 7.0),))
    only(of_recipe(wanted, old), Verdict.NOTE, "bf16 is slow on Tesla V100", "set it to fp16")
    only(of_recipe(recipe(tmp_path, training={"precision": "fp16"})), Verdict.WRONG, "fp16 needs a GPU", "resources.use_gpu=true")


def test_an_extra_that_is_missing(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, training={"run": "gs://bucket/run", "trackers": ["mlflow"]})
    only(of_recipe(wanted, installed=["mlflow"]), Verdict.WRONG, "training.run wants the extra gs", "pip install 'leapray[gs]'")
    only(of_recipe(wanted, installed=["gcsfs"]), Verdict.WRONG, "training.trackers wants the extra mlflow", "leapray[mlflow]")


def test_memory_that_a_shuffle_and_an_object_store_that_flat_rows_would_overflow(tmp_path: Path) -> None:
    small = replace(MACHINE, available=2 * GB)
    large = recipe(tmp_path, data={"shuffle_rows": 65536})
    only(of_recipe(large, small), Verdict.NOTE, "8 tasks x 728.2 MB = 5.8 GB", "of 2.0 GB", "data.shuffle_rows")
    flat = recipe(tmp_path, data={"stream_from": "flat"})
    only(of_recipe(flat, small), Verdict.NOTE, "10 blocks x 60.7 MB = 606.9 MB", "600.0 MB", "data.stream_from=shards")


def test_a_disk_too_small_for_the_shards(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)

    def of(free: int) -> list[Finding]:
        source = Visit(Place("data.sources.low_res.path", "/flat", False), True, bytes=200 * GB)
        prepared = Visit(Place("data.prepared", "/prepared", True), True, disk=Disk("/prepared", 500 * GB, free))
        return list(judge_recipe(wanted, MACHINE, (source, prepared), set()))

    assert bad(of(300 * GB)) == []
    only(of(150 * GB), Verdict.NOTE, "about 100.2 GB", "while rows are shuffled")
    only(of(90 * GB), Verdict.WRONG, "only 90.0 GB are free", "make room")


def test_places_are_written_and_read_back_and_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for url in ("there", "not/made/yet"):
        seen = visit(Place("training.run", str(tmp_path / url), True))
        assert seen.trouble is None
        assert seen.disk is not None
        assert seen.disk.free > 0
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    key = "training.run"
    only(
        judge_visits([visit(Place(key, str(tmp_path / "file/run"), True))]), Verdict.WRONG, "is a file", "set training.run to another place"
    )
    only(judge_visits([visit(Place(key, "/proc/leapray/run", True))]), Verdict.WRONG, key, "cannot be written")
    source = Place("data.sources.a.path", str(tmp_path / "nothing"), False)
    only(judge_visits([visit(source)]), Verdict.WRONG, "nothing lies there", "where the files are")
    prepared = Visit(Place("data.prepared", "/prepared", True), True, bytes=1)
    only(judge_visits([visit(source), prepared]), Verdict.NOTE, "nothing lies there", "can be trained on without it")
    only(judge_visits([visit(source), prepared], flat=True), Verdict.WRONG, "nothing lies there")


def test_a_source_of_netcdf_pairs_must_be_converted_first_and_its_incomplete_pairs_are_counted(tmp_path: Path) -> None:
    source = Place("data.sources.low_res.path", str(tmp_path), False)
    prepared = Visit(Place("data.prepared", "/prepared", True), True, bytes=1)
    first = [f"run `leapray convert {tmp_path} DEST` first and set data.sources.low_res.path to DEST"]
    for step in range(3):
        write_pair(tmp_path, step, columns=1)
    (finding,) = judge_visits([visit(source)])
    only([finding], Verdict.WRONG, f"{tmp_path} holds 3 netCDF pairs", *first)
    assert "skip" not in finding.text
    Path(write_pair(tmp_path, 3, columns=1).mlo).unlink()
    Path(write_pair(tmp_path, 4, columns=1).mli).unlink()
    words = ["holds 3 netCDF pairs", "2 steps lack", f"{file_name('mli', 3)} (no mlo), {file_name('mlo', 4)} (no mli)", "--incomplete skip"]
    only(judge_visits([visit(source)]), Verdict.WRONG, *first, *words)
    # whatever was prepared before, of these files nothing can be
    only(judge_visits([visit(source), prepared]), Verdict.WRONG, *first)
    # flat files in the same folder are what is read, whatever lies beside them
    shutil.copytree(tmp_path / "0001-02", tmp_path / "copy")
    only(judge_visits([visit(source)]), Verdict.WRONG, "the same step is also in")
    write_flat(tmp_path, stop="0001-03", steps=1)
    only(judge_visits([visit(source)]), Verdict.NOTE, "passed over 16 files")


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
    monkeypatch.setattr(doctor.places, "visit", lambda place: for_ever.wait())  # type: ignore[attr-defined]
    (seen,) = visit_all([Place("training.run", "s3://bucket/run", True)], patience=0.01)
    for_ever.set()
    assert seen.trouble == "s3://bucket/run: did not answer within 0.01 s"


def test_a_local_place_is_told_from_another_of_the_same_name(tmp_path: Path) -> None:
    seen = visit_all([Place("training.run", str(tmp_path / "run"), True)])
    with marked(seen) as marks:
        assert unseen(marks) == ()
        for path in marks.values():
            Path(path).unlink()
        assert unseen(marks) == ("training.run",)
    assert list(tmp_path.iterdir()) == []


def test_places_in_a_bucket(bucket: str) -> None:
    place = Place("data.prepared", f"{bucket}/prepared", True)
    assert visit(place) == Visit(place, False)
    assert storage.list_folder(bucket) == ({}, [])
    lost = visit(Place("data.prepared", "s3://no-such-bucket-here/prepared", True))
    assert "there is no such bucket" in str(lost.trouble)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["leapray", "doctor", *map(str, arguments)])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


def written(root: Path, **places: str) -> Path:
    values = recipe_values(root)
    values["data"]["prepared"] = places.get("prepared", values["data"]["prepared"])
    values["training"]["run"] = places.get("run", values["training"]["run"])
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_endpoint_that_refuses_is_found_and_no_secret_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAHIDDEN", "AWS_SECRET_ACCESS_KEY": "HIDDENSECRET", "AWS_SESSION_TOKEN": "HIDDENTOKEN"}
    port = closed_port()
    address = f"http://127.0.0.1:{port}"
    for name, value in {**secrets, "RAY_AUTH_TOKEN": "HIDDENRAY", "AWS_ENDPOINT_URL": address.replace("//", "//me:HIDDENPASS@")}.items():
        monkeypatch.setenv(name, value)
    write_flat(tmp_path / "flat", stop="0001-05", steps=1)
    status = command(monkeypatch, written(tmp_path, prepared="s3://bucket/prepared"))
    out, err = capsys.readouterr()
    assert status == 2
    assert f"wrong  S3: nothing answers at {address} (Connection refused); mend or unset AWS_ENDPOINT_URL" in out
    assert "data.prepared cannot be written to: s3://bucket/prepared: S3 cannot be reached" in out
    assert err.startswith("error: 2 of 15 findings are wrong, beside 0 notes")
    assert "ok     S3: credentials found (env)" in out
    assert "HIDDEN" not in out + err


def test_a_good_recipe_ends_with_status_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "machine", lambda **_: MACHINE)
    write_flat(tmp_path / "flat", stop="0001-05", steps=1)
    assert command(monkeypatch, written(tmp_path)) == 0
    assert "nothing is wrong" in capsys.readouterr().out.splitlines()[-1]
    assert command(monkeypatch, written(tmp_path, run="/proc/leapray/run")) == 2
    assert "set training.run to another place" in capsys.readouterr().out


def test_a_look_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: bool) -> Machine:
        raise RuntimeError("no such sensor")

    monkeypatch.setattr(doctor, "machine", broken)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = bad(doctor.examine())
    assert [finding.verdict for finding in found if "no such sensor" in finding.text] == [Verdict.WRONG]


def test_without_credentials_the_road_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setattr(doctor.places, "unreachable", lambda host, port: None)  # type: ignore[attr-defined]
    found = road()
    assert (found.credentials, found.region, found.named) == (None, "eu-west-1", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(UserError, match="the configuration of S3 is broken"):
        road()


@pytest.mark.parametrize("variable", ["FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_the_remedy_names_the_variable_that_was_set(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    from fsspec.config import conf, set_conf_env

    for name in ("FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(conf, "s3", {})
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    set_conf_env(conf)
    found = road()
    assert found.named == variable
    only([finding for finding in judge_road(found, wanted=True) if "nothing answers" in finding.text], Verdict.WRONG, f"unset {variable}")


def test_a_place_that_cannot_be_written_is_named_without_the_file_that_tried_it(tmp_path: Path) -> None:
    found = visit(Place("training.run", "/proc/leapray/run", True))
    assert found.trouble is not None
    assert found.trouble.startswith("/proc: cannot be written")
    assert ".tmp-doctor" not in found.trouble


def test_a_head_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address := f"127.0.0.1:{closed_port()}")
    found = [finding for finding in doctor.examine() if address in finding.text]
    only(found, Verdict.WRONG, "answers there", "Connection refused", "ray start --head", "unset RAY_ADDRESS")


def test_help_is_answered_without_ray_and_torch() -> None:
    script = "import sys, leapray.cli, leapray.doctor; print(*(name for name in ('torch', 'ray') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.ray
def test_every_node_of_a_real_cluster_is_asked(ray_cluster: None, tmp_path: Path) -> None:
    from leapray.doctor.measure import machine
    from leapray.doctor.nodes import survey

    place = Place("training.run", str(tmp_path / "run"), True)
    found, here = survey([place], visit_all([place])), machine()
    (node,) = found.nodes
    assert node.silence is None
    assert node.versions == here.versions
    assert node.cpus == 8
    assert node.object_store > 0
    assert node.machine is not None
    assert node.machine.cores == here.cores
    assert found.answers_strangers is False
    assert not [finding for finding in judge_cluster(found, here) if finding.verdict is Verdict.WRONG and "too small" not in finding.text]
