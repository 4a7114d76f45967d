"""libtpu on a machine without a TPU, such as one that only compiles for TPUs (the `tpu` extra)."""

import os
from pathlib import Path

_PCI = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"


def keep_quiet(devices: Path = _PCI) -> None:
    """Has libtpu not ask, before JAX loads it, what only a TPU's machine can answer.

    It would ask the metadata server, and print a warning for each answer that does not come.

    Args:
        devices: the folder of the machine's PCI devices.
    """
    vendors = [path.read_text().strip() for path in devices.glob("*/vendor")]
    # Where there is no list of devices, nothing is known.
    if vendors and _GOOGLE not in vendors:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
