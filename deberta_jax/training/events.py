"""TensorBoard's event files, by tensorboardX."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def tensorboardx() -> ModuleType:
    """The package, imported without torch.

    It imports torch wherever that is installed, to take tensors as values: two seconds and 200 MB
    of every process of a run, for what is never given to it here. It does without when it must.
    """
    without = "torch" not in sys.modules
    if without:
        sys.modules["torch"] = None  # type: ignore[assignment]  # `import torch` then raises
    try:
        import tensorboardX
        import tensorboardX.summary
    finally:
        if without:
            del sys.modules["torch"]
    return tensorboardX


def summary_writer(directory: Path, **options: Any) -> Any:
    """tensorboardX's `SummaryWriter` of a directory."""
    return tensorboardx().SummaryWriter(str(directory), **options)
