"""The recipes of the checkout, which lie in its top-level folder `configs/`.

A wheel has the recipes themselves in this place (`package_dir` in setup.py), and not this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
