"""``leapray doctor``: what this machine or cluster has, what a recipe would use of it, and what is missing or mis-set.

Facts are measured in ``measure``, ``places`` and ``nodes``, and judged in ``judging`` and ``recipes``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import TypeVar

from leapray import storage
from leapray.cluster import shadows
from leapray.cluster.capacity import joins
from leapray.data.findings import Finding, Verdict
from leapray.doctor.facts import Cluster, Place, Road, Visit
from leapray.doctor.judging import judge_cluster, judge_machine, judge_road, judge_visits, wrong
from leapray.doctor.measure import machine
from leapray.doctor.places import is_s3, named_places, road, visit_all
from leapray.doctor.recipes import EXTRAS, judge_recipe
from leapray.errors import UserError
from leapray.faults import shown
from leapray.recipe import Recipe

T = TypeVar("T")


def examine(recipe: Recipe | None = None) -> Iterator[Finding]:
    """Look at this machine, at the cluster of ``RAY_ADDRESS`` where it is set, and at what a recipe would use of them.

    Every finding that is not good tells its remedy. A look that itself fails becomes a finding; nothing is raised.
    """
    broken: list[Finding] = []

    def tried(what: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except UserError as error:
            broken.append(Finding(Verdict.WRONG, str(error)))
        except Exception as error:
            broken.append(Finding(Verdict.WRONG, _failed(what, error)))
        return None

    def judged(what: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
        yield from tried(what, lambda: list(findings())) or ()
        yield from broken
        broken.clear()

    address = os.environ["RAY_ADDRESS"] if joins() else None
    here = tried("this machine", lambda: machine(starts_ray=not address))
    if here is not None:
        yield from judged("this machine", lambda: judge_machine(here, starts_ray=not address))
    yield from broken
    broken.clear()
    yield from judged("the working directory", lambda: (wrong(shadows.sentence(path)) for path in shadows.shadows(os.getcwd())))

    asked = named_places(recipe) if recipe is not None else []
    wanted = any(is_s3(place.url) for place in asked)
    s3 = tried("the road to S3", road) if wanted or recipe is None or _speaks_of_s3() else None
    if s3 is not None and (wanted or _speaks_of_s3()):
        yield from judged("the road to S3", lambda: judge_road(s3, wanted=wanted or recipe is None))
    yield from broken
    broken.clear()

    visits = tried("the places of the recipe", lambda: _visits(asked, s3)) or ()
    yield from judged(
        "the places of the recipe", lambda: judge_visits(visits, flat=recipe is not None and recipe.data.stream_from == "flat")
    )

    cluster: Cluster | None = None
    if address:
        cluster = tried("the cluster", lambda: _cluster(address, visits))
        if cluster is not None and here is not None:
            yield from judged("the cluster", lambda: judge_cluster(cluster, here))
        yield from broken
        broken.clear()
    if recipe is not None and here is not None and (cluster is not None or not address):
        installed = {module for module in EXTRAS.values() if find_spec(module) is not None}
        yield from judged("the recipe", lambda: judge_recipe(recipe, here, visits, installed, cluster))


def require_good(findings: Iterable[Finding]) -> str:
    """One line that counts findings. Raises UserError, with the counts, if any is wrong."""
    verdicts = [finding.verdict for finding in findings]
    wrong, notes = verdicts.count(Verdict.WRONG), verdicts.count(Verdict.NOTE)
    if wrong:
        raise UserError(f"{wrong} of {len(verdicts)} findings are wrong, beside {_notes(notes)}; each line above tells its remedy")
    return f"{len(verdicts)} findings: nothing is wrong, {_notes(notes)}"


def _notes(count: int) -> str:
    return f"{count} note{'' if count == 1 else 's'}"


def _failed(what: str, error: Exception) -> str:
    return (
        f"{what} could not be looked at ({type(error).__name__}: {shown(' '.join(str(error).split())[:200])}); "
        f"this is no verdict on it, so please report it"
    )


def _speaks_of_s3() -> bool:
    """Whether the environment says anything of S3."""
    return any(name in os.environ for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"))


def _visits(asked: list[Place], s3: Road | None) -> tuple[Visit, ...]:
    """Try the places, but those in S3 only where something answers there."""
    shut = s3 is None or s3.trouble is not None or s3.credentials is None
    skipped = {place.key for place in asked if is_s3(place.url) and shut}
    tried = iter(visit_all([place for place in asked if place.key not in skipped]))
    reason = "S3 cannot be reached, as told above, so it was not tried"
    return tuple(
        Visit(place, False, f"{shown(place.url)}: {reason}") if place.key in skipped else replace(next(tried), place=place)
        for place in asked
    )


def _cluster(address: str, visits: tuple[Visit, ...]) -> Cluster:
    from leapray.doctor.nodes import look_at_cluster

    # relative places are the driver's; what it could not use itself, no node has to try
    usable = [Place(seen.place.key, storage.absolute(seen.place.url), seen.place.writes) for seen in visits if seen.trouble is None]
    return look_at_cluster(address, usable, visits)
