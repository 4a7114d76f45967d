"""Where a model lies in a folder of sentence-transformers."""

import json
from pathlib import Path

MODULES = "modules.json"


def transformer_folder(directory: Path) -> Path:
    """The folder of the Transformer that `modules.json` names; `directory` where there is none.

    Old versions of sentence-transformers put it into `0_Transformer`, new ones beside that file.
    """
    try:
        modules = json.loads((directory / MODULES).read_text(encoding="utf-8"))
        folders = [m["path"] for m in modules if str(m["type"]).endswith("Transformer")]
    except (OSError, ValueError, TypeError, KeyError):
        return directory
    own = directory / str(folders[0]) if len(folders) == 1 else directory
    return own if own.is_dir() else directory
