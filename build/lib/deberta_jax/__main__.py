"""All verbs behind one command: deberta-jax VERB ..., or python -m deberta_jax VERB ..."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from deberta_jax import __version__

VERBS = (
    "prepare", "train", "evaluate", "finetune", "score", "export", "convert", "plot", "sweep",
    "compile", "config",
)  # fmt: skip
USAGE = "usage: deberta-jax VERB --FLAG=VALUE...; deberta-jax VERB --help lists the flags of a verb"


def main() -> None:
    """Runs the verb that the command line names, exactly as `python -m deberta_jax.VERB` does."""
    verb, *arguments = sys.argv[1:] or [""]
    if verb in ("--help", "-h", "help"):
        print(listing())
    elif verb == "--version":
        print(f"deberta_jax {__version__}")
    elif verb in VERBS:
        sys.argv = [f"deberta-jax {verb}", *arguments]
        # Imported, the module would hide what the package offers by the same name
        # (`deberta_jax.train` is a function).
        runpy.run_module(f"deberta_jax.{verb}", run_name="__main__", alter_sys=True)
    else:
        print(f"error: {_explain(verb)}; deberta-jax --help lists the verbs", file=sys.stderr)
        sys.exit(2)


def listing() -> str:
    """The verbs, each with what its docstring says first."""
    lines = [USAGE, ""]
    for verb in VERBS:
        source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {verb:<10}{first.partition(': python -m')[0].rstrip(':')}")
    return "\n".join(lines)


def _explain(verb: str) -> str:
    if not verb:
        return "a verb is missing"
    nearest = difflib.get_close_matches(verb, VERBS, 1, cutoff=0)[0]
    return f"{verb!r} is no verb; the nearest is {nearest!r}"


if __name__ == "__main__":
    main()
