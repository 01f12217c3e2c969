"""What the facts mean: each finding with its verdict and, unless it is good, its remedy. Pure functions of facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from leapray import storage
from leapray.climsim.pairs import REMEDY
from leapray.cluster.preflight import LEAST_FILES
from leapray.cluster.ray_compat import store_bytes
from leapray.data.fetch import in_words
from leapray.data.findings import Finding, Verdict
from leapray.doctor.facts import Cluster, Disk, Machine, Node, Road, Visit
from leapray.faults import shown

LEAST_STORE = 4 * 128 * 2**20
"""Four of Ray Data's largest blocks."""
_FULL = 0.95
"""Ray puts no objects on a disk that is fuller (``local_fs_capacity_threshold``)."""
_LEAST_TEMPORARY = 2 * 10**9
_FEW_FILES, _FILES = 4096, 65536
_SAME = ("python", "leapray", "ray", "torch", "pyarrow")


def ok(text: str) -> Finding:
    return Finding(Verdict.OK, text)


def note(text: str) -> Finding:
    return Finding(Verdict.NOTE, text)


def wrong(text: str) -> Finding:
    return Finding(Verdict.WRONG, text)


def judge_machine(machine: Machine, *, starts_ray: bool) -> Iterator[Finding]:
    """One machine; with ``starts_ray`` as one on which Ray would be started, which is then sized by what is free."""
    told = ", ".join(f"{name} {version}" for name, version in machine.versions.items() if version)
    yield ok(f"{machine.name}: {told}")
    yield ok(f"{machine.name}: {machine.cores} cores, {in_words(machine.available)} of {in_words(machine.memory)} memory free")
    yield from _gpus(machine)
    if starts_ray:
        yield _shared(machine)
        yield from (wrong(f"{machine.name}: Ray cannot be started: {sentence}") for sentence in machine.obstacles)
    yield from _disks(machine)
    if not (starts_ray and machine.open_files < LEAST_FILES):
        yield _open_files(machine)


def _gpus(machine: Machine) -> Iterator[Finding]:
    if not machine.gpus:
        yield ok(f"{machine.name}: no Nvidia GPU")
        return
    first, count = machine.gpus[0], len(machine.gpus)
    told = f"{machine.name}: {count} x {first.name}, {in_words(first.memory)}, driver {first.driver}"
    if machine.torch_cuda is None:
        yield wrong(f"{told}, but torch {machine.versions.get('torch')} is built without CUDA; install the CUDA build of torch")
    elif machine.torch_gpus == 0:
        yield note(
            f"{told}, but torch built for CUDA {machine.torch_cuda} sees none here; update the driver, or check CUDA_VISIBLE_DEVICES"
        )
    else:
        yield ok(f"{told}; torch for CUDA {machine.torch_cuda} sees {machine.torch_gpus}")


def store_wanted(machine: Machine) -> int:
    """Bytes that Ray would give the object store of this machine."""
    return store_bytes(machine.available, machine.shared.free if machine.shared else 0)


def _shared(machine: Machine) -> Finding:
    if machine.shared is None:
        return ok(f"{machine.name}: no /dev/shm; Ray keeps its object store in a file")
    wanted, free = store_wanted(machine), machine.shared.free
    told = f"{machine.name}: Ray's object store wants {in_words(wanted)}, and /dev/shm has {in_words(free)} free"
    remedy = f"make room in /dev/shm, or start the container with --shm-size={-(-int(1.1 * wanted) >> 30)}g"
    if wanted <= free:
        return ok(told) if wanted >= LEAST_STORE else note(f"{told}, which is little for Ray Data; free some memory")
    return note(f"{told}: it would lie in {machine.ray_temporary.path} on disk, which is slow; {remedy}")


def _disks(machine: Machine) -> Iterator[Finding]:
    temporary, ray = machine.temporary, machine.ray_temporary
    if temporary.free < _LEAST_TEMPORARY:
        yield wrong(f"{_room(machine, temporary)}, too little for files that wait to be uploaded; make room or set TMPDIR")
    else:
        yield ok(_room(machine, temporary))
    if ray.free < (1 - _FULL) * ray.total:
        yield wrong(f"{_room(machine, ray)}: Ray puts no objects on a disk that is {_FULL:.0%} full; make room or set RAY_TMPDIR")
    elif ray.path != temporary.path:
        yield ok(_room(machine, ray))


def _room(machine: Machine, disk: Disk) -> str:
    return f"{machine.name}: {disk.path} has {in_words(disk.free)} of {in_words(disk.total)} free"


def _open_files(machine: Machine) -> Finding:
    told = f"{machine.name}: {machine.open_files} open files to a process"
    remedy = f"set `ulimit -n {_FILES}` before Ray is started"
    if machine.open_files < _FEW_FILES:
        return wrong(f"{told}, which Ray's processes run out of; {remedy}")
    return ok(told) if machine.open_files < 1 << 40 else ok(f"{machine.name}: no limit of open files")


def judge_road(road: Road, *, wanted: bool) -> Iterator[Finding]:
    """The road to S3; what is missing is wrong only where S3 is ``wanted``."""
    verdict = Verdict.WRONG if wanted else Verdict.NOTE
    if road.credentials:
        yield ok(f"S3: credentials found ({road.credentials})")
    else:
        needed = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
        yield Finding(verdict, f"S3: no credentials were found; {needed}")
    if road.region or road.named:
        yield ok(f"S3: region {road.region or 'not set'}, endpoint {road.endpoint}")
    else:
        yield Finding(Verdict.NOTE, "S3: no region is set, us-east-1 is taken; set AWS_DEFAULT_REGION to the bucket's")
    if road.trouble:
        remedy = f"mend or unset {road.named}" if road.named else "check the network"
        yield Finding(verdict, f"S3: nothing answers at {road.endpoint} ({road.trouble}); {remedy}")


def judge_visits(visits: Iterable[Visit], where: str = "", *, flat: bool = False) -> Iterator[Finding]:
    """Places as one machine found them; ``where`` names it unless it is the driver.

    Sources that are gone are only noted where shards are prepared of them; ``flat`` says that training reads the sources themselves.
    """
    at = f"{where}: " if where else ""
    visits = list(visits)
    prepared = not flat and any(seen.place.key == "data.prepared" and seen.bytes for seen in visits)
    for seen in visits:
        key, url = seen.place.key, seen.place.url
        verdict = Verdict.NOTE if prepared and key.startswith("data.sources.") else Verdict.WRONG
        if seen.trouble is not None:
            verb = "written to" if seen.place.writes else "read"
            elsewhere = "another place" if seen.place.writes else "where the files are"
            without = "; what is prepared can be trained on without it" if verdict is Verdict.NOTE else ""
            yield Finding(verdict, f"{at}{key} cannot be {verb}: {seen.trouble}; mend that, or set {key} to {elsewhere}{without}")
        elif seen.pairs is not None and not where:
            holes = f"; {seen.pairs.incomplete}, and {REMEDY}" if seen.pairs.incomplete else ""
            first = f"run `leapray convert {shown(url)} DEST` first and set {key} to DEST"
            yield wrong(f"{key}: {shown(url)} holds {_pairs(seen.pairs.complete)} and no flat files; {first}{holes}")
        elif not where:
            free = f", {in_words(seen.disk.free)} free" if seen.disk and seen.place.writes else ""
            does = "can be written, listed and read back" if seen.place.writes else f"holds {in_words(seen.bytes)}"
            yield ok(f"{key}: {url} {does}{free}")
        if seen.passed_over and not where:
            yield note(f"{key}: {storage.passed_over_in_words(seen.passed_over)}")


def _pairs(count: int) -> str:
    return f"{count} netCDF pair{'' if count == 1 else 's'}"


def judge_cluster(cluster: Cluster, driver: Machine) -> Iterator[Finding]:
    """The cluster as it was joined from ``driver``."""
    cpus, gpus = sum(node.cpus for node in cluster.nodes), sum(node.gpus for node in cluster.nodes)
    yield ok(f"the cluster at {cluster.address}: {len(cluster.nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs")
    if cluster.grows:
        yield ok("the cluster adds nodes as they are asked for")
    elif cluster.free_cpus < 1:
        yield note(f"the cluster: all of its {cpus:g} CPUs are taken now; what is started waits, so let others end or add nodes")
    elif cluster.free_cpus < cpus:
        yield note(f"the cluster: {cluster.free_cpus:g} of its {cpus:g} CPUs are free now; what needs more waits, or add nodes")
    if cluster.answers_strangers:
        yield note(
            "the cluster answers clients that have no token, so whoever reaches it can run code; start every node with "
            "RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
        )
    else:
        yield ok("the cluster answers only clients with its token")
    for node in cluster.nodes:
        yield from _node(node, driver, len(cluster.nodes))


def _node(node: Node, driver: Machine, count: int) -> Iterator[Finding]:
    name = f"node {node.name}"
    store = f"{in_words(int(node.object_store))} object store"
    yield ok(f"{name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs, {in_words(int(node.memory))} memory, {store}")
    if node.object_store < LEAST_STORE:
        least = f"at least {in_words(LEAST_STORE)}"
        yield wrong(f"{name}: its object store is too small for Ray Data, which wants {least}; `ray start --object-store-memory`, in bytes")
    if node.silence is not None or node.versions is None:
        yield wrong(f"{name}: {node.silence}; look at its raylet's log, or take it out of the cluster")
        return
    yield from _versions(name, node.versions, driver.versions)
    if node.lacking is not None:
        remedy = "install the driver's version there, or submit the verb with `ray job submit --working-dir .`"
        yield wrong(f"{name}: leapray cannot be imported there ({node.lacking}); {remedy}")
    if node.machine is not None:
        for finding in judge_machine(node.machine, starts_ray=False):
            if finding.verdict is not Verdict.OK:
                yield Finding(finding.verdict, f"node {finding.text}")
        seen = len(node.machine.gpus)
        if node.gpus > seen:
            yield note(f"{name}: Ray counts {node.gpus:g} GPUs, and the Nvidia driver tells of {seen}; start it without --num-gpus")
        elif node.gpus < seen:
            yield note(f"{name}: Ray counts {node.gpus:g} of its {seen} GPUs; start it without --num-gpus or CUDA_VISIBLE_DEVICES")
    yield from judge_visits(node.visits, name)
    for key in node.unseen:
        yield wrong(
            f"{name}: {key} is a local path there too, but not the driver's disk; with {count} nodes set {key} to s3:// or a shared disk"
        )


def _versions(name: str, theirs: Mapping[str, str | None], ours: Mapping[str, str | None]) -> Iterator[Finding]:
    differ = [key for key in _SAME if key in theirs and theirs[key] != ours.get(key)]
    told = ", ".join(f"{key} {theirs[key] or 'missing'} (driver: {ours.get(key)})" for key in differ)
    if not differ:
        yield ok(f"{name}: the same versions as the driver")
    elif all(key not in ("leapray", "ray") and _minor(theirs[key]) == _minor(ours.get(key)) for key in differ):
        yield note(f"{name}: {told} differ a little; install the driver's versions there")
    else:
        yield wrong(f"{name}: {told} differ; install the driver's versions there, or use the same image for all nodes")


def _minor(version: str | None) -> list[str]:
    return (version or "").partition("+")[0].split(".")[:2]
