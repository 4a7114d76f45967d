"""Several processes that train as one: one on every host of a pod, or a few on one machine."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax import locks, storage
from deberta_jax.errors import PassingError, UserError, reason

FORMS = "off, auto, or HOST:PORT,PROCESSES,INDEX"
# A process that is silent for so long is dead: a preempted host should not hold the rest for long.
HEARTBEAT_SECONDS = 30
# The hosts of a pod are given out one by one, and pull an image each.
INITIALIZATION_SECONDS = 1800
# The processes that end together wait so long for the last one.
_SHUTDOWN_SECONDS = 30
# What JAX and its collectives say of a process that is not there.
_GONE = re.compile(
    "gloo|connection|coordination service|heartbeat|peer|unavailable|deadline|timed? ?out|aborted",
    re.IGNORECASE,
)
# Of a text that processes exchange.
_TEXT_BYTES = 1024


def initialize(
    distributed: str,
    heartbeat: int = HEARTBEAT_SECONDS,
    timeout: int = INITIALIZATION_SECONDS,
) -> None:
    """Joins the other processes of the job. Call it before anything asks for devices.

    Args:
        distributed: "off" for one process; "auto" where the environment has the rest (TPU VMs,
            GKE, Slurm, Open MPI); else the address of process 0, the number of processes and the
            index of this one, as "10.0.0.2:8476,4,1".
        heartbeat: seconds of silence after which a process counts as dead, and the others end.
        timeout: seconds until all of them have to be there.

    Raises:
        UserError: it has another form.
        PassingError: the processes do not find one another.
    """
    if distributed == "off":
        return
    # Until the loop begins there is nothing to save: SIGTERM keeps its ordinary meaning, which
    # JAX's service would take away (`listen_for_preemption`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **_arguments(distributed),
            heartbeat_timeout_seconds=heartbeat,
            initialization_timeout=timeout,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise PassingError(
            f"--distributed={distributed}: the processes of the job did not meet "
            f"({str(error).splitlines()[0]})"
        ) from error


def _arguments(distributed: str) -> dict:
    if distributed == "auto":
        return {}
    try:
        address, processes, index = distributed.split(",")
        count, own = int(processes), int(index)
        if ":" not in address or not 0 <= own < count:
            raise ValueError
    except ValueError:
        raise UserError(f"--distributed={distributed}: it must be {FORMS}") from None
    return dict(coordinator_address=address, num_processes=count, process_id=own)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends this process where an error inside comes from another one that is gone, or is its own.

    Python's way out waits for all processes to meet once more, and one of them is not there: the
    others would wait until it counts as dead. What the user can mend, all processes raise alike.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and _GONE.search(str(error)):
            print(
                "error: another process of the job is gone or cannot be reached "
                f"({reason(error, 200)}); the "
                "same command goes on from the last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(PassingError.status)


def leave(status: int) -> None:
    """Ends this process, with the others, without the seconds that Python's way out takes.

    Whoever is told to stop has a few seconds, and everything is written.
    """
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def listen_for_preemption() -> None:
    """From now on SIGTERM is a notice that all processes hear of (`reached_preemption`)."""
    from jax._src import distributed  # jax.distributed does it at the start, or never

    if distributed.global_state.preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        distributed.global_state.initialize_preemption_sync_manager()


def reached_preemption(count: int) -> bool:
    """Whether to stop now, because some process was told to. All say so at the same `count`.

    Args:
        count: of the calls, which all processes make alike.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(count)


def agreed(text: str) -> str:
    """What some process says: the first that is not empty, by index; the same on all processes."""
    if jax.process_count() == 1:
        return text
    row = np.zeros(_TEXT_BYTES, np.uint8)
    encoded = text.encode()[:_TEXT_BYTES]
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    texts = [bytes(row).rstrip(b"\0") for row in multihost_utils.process_allgather(row)]
    return next((text.decode(errors="ignore") for text in texts if text), "")


def of_first(value: float) -> float:
    """The value that process 0 has, on all processes."""
    return float(agreed(repr(value) if jax.process_index() == 0 else ""))


def on_first(function: Callable[[], Any]) -> None:
    """Calls `function` on process 0 alone; where it refuses, all processes do.

    Raises:
        UserError: `function` did.
    """
    refusal: UserError | None = None
    if jax.process_index() == 0:
        try:
            function()
        except UserError as error:
            refusal = error
    text = agreed(f"{refusal.status}{refusal}" if refusal else "")
    if refusal is not None:
        raise refusal
    if text:
        kind = PassingError if int(text[0]) == PassingError.status else UserError
        raise kind(text[1:])


@contextlib.contextmanager
def alone_in(directory: storage.PathLike, what: str) -> Iterator[None]:
    """Keeps other jobs out of a directory (`locks.held`): process 0 holds the lock for all.

    Raises:
        UserError: another job is there, or the directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(locks.held(directory, what)))
        yield


def available_cores() -> int:
    """The cores that this process may use, which in a container are not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
