"""Starting or joining Ray, quietly, and telling a user's mistake from a crash wherever on the cluster it was raised."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import ray

from leapray.cluster import capacity, local_ray, preflight, ray_compat, shadows
from leapray.cluster.capacity import MINIMUM_LOCAL_CPUS
from leapray.cluster.nodes import ONE_ARENA
from leapray.errors import PassingError, UserError
from leapray.faults import shown

_CONNECT_SECONDS = 5.0


@contextmanager
def connected(modules: Iterable[str] = ()) -> Iterator[None]:
    """Join the cluster of ``RAY_ADDRESS`` or of this process, or start a local one for the length of the block.

    ``modules`` are files and folders of the working directory that the processes of a cluster which is joined are to find too.
    Raises UserError where a cluster is named that cannot be joined. SIGTERM, by which a job is stopped, ends the block as Ctrl-C does.
    """
    if ray.is_initialized():
        with user_errors():
            yield
        return
    start(modules=modules)
    try:
        with user_errors(), _ended_by_sigterm():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block as Ctrl-C does, which Ray lets through; by itself it would print a stack of its native code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def start(cpus: int | None = None, modules: Iterable[str] = ()) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start a quiet one here, dashboard on loopback.

    A local one gets at least 8 logical CPUs: controllers and data tasks reserve CPUs that they hardly use, and with two
    of them a trainer and its data would wait for each other. Raises UserError where a cluster is named that cannot be joined, where
    Ray cannot be started (:func:`leapray.cluster.local_ray.start_here`), and for files here that Ray would import instead of its own.
    """
    preflight.refuse_names()
    shadows.refuse(os.getcwd())
    for key, value in (ray_compat.LOCAL_ENVIRONMENT | ONE_ARENA).items():
        os.environ.setdefault(key, value)
    if capacity.joins():
        _join(os.environ["RAY_ADDRESS"], sorted(set(modules)))
    else:
        local_ray.start_here(cpus or max(os.cpu_count() or 1, MINIMUM_LOCAL_CPUS))
    ray_compat.silence()


def _join(address: str, modules: Sequence[str]) -> None:
    """Join the cluster at an address, which :func:`refuse_address` has nothing against; tell in a sentence why it cannot be joined."""
    refuse_address(address)
    # a job that was submitted has its working directory everywhere
    shipped = {} if ray_compat.SUBMITTED in os.environ or not modules else {"runtime_env": {"py_modules": list(modules)}}
    try:
        local_ray.limited(lambda: ray.init(**local_ray.SILENT, **shipped), f"RAY_ADDRESS {address}: the cluster could not be joined")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"RAY_ADDRESS {address}: {_why_not_joined(error)}") from error


def refuse_address(address: str) -> None:
    """Raise UserError for an address of other things than a cluster, and for one at which nothing answers; "auto" finds its own."""
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS {shown(address)}: expected HOST:PORT of a cluster's head, from a machine of the cluster; from elsewhere give the "
            f"verb to it with: ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/run.py VERB"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS {address}: no cluster answers there ({error}); start one with ray start --head, or unset RAY_ADDRESS "
            f"to run on this machine alone"
        ) from error


def _why_not_joined(error: BaseException) -> str:
    if ray_compat.wants_token(error):
        return (
            "the cluster wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token as on its head "
            "(ray get-auth-token there prints it)"
        )
    if ray_compat.other_version(error):
        return " ".join(str(error).split())
    return f"the cluster could not be joined ({' '.join(str(error).split())[:300]})"


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise the UserError that lies inside an exception of Ray as itself; let every other exception pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if found := find_user_error(error):
            raise found from error
        raise


_IN_TRACEBACK = re.compile(r"^(?:leapray\.errors\.)?(User|Passing)Error: (.+)$", re.MULTILINE)


def find_user_error(error: object, depth: int = 8) -> UserError | None:
    """The UserError among an exception's causes, or the one in the remote traceback that a Ray exception carries as text."""
    if not isinstance(error, BaseException) or depth == 0:
        return None
    if isinstance(error, UserError):
        return error
    for inner in ray_compat.causes(error):
        if found := find_user_error(inner, depth - 1):
            return found
    match = _IN_TRACEBACK.search(str(error))
    return {"User": UserError, "Passing": PassingError}[match[1]](match[2]) if match else None


def joins() -> bool:
    """Whether :func:`connected` joins a cluster that is there already, so that what it holds is known only then."""
    return ray.is_initialized() or capacity.joins()
