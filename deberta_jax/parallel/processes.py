"""Several processes that train as one: one on every host of a pod, or a few on one machine."""

import os

import jax

from deberta_jax.errors import PassingError, UserError

FORMS = "off, auto, or HOST:PORT,PROCESSES,INDEX"
# How long the others wait for a process that is silent before they give up: a preempted host
# should not hold the rest for long.
_HEARTBEAT_SECONDS = 100


def initialize(distributed: str) -> None:
    """Joins the other processes of the job. Call it before anything asks for devices.

    Args:
        distributed: "off" for one process; "auto" where the environment has the rest (TPU VMs,
            GKE, Slurm, Open MPI); else the address of process 0, the number of processes and the
            index of this one, as "10.0.0.2:8476,4,1".

    Raises:
        UserError: it has another form.
        PassingError: the processes do not find one another.
    """
    if distributed == "off":
        return
    try:
        jax.distributed.initialize(
            **_arguments(distributed), heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
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


def available_cores() -> int:
    """The cores that this process may use, which in a container are not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
