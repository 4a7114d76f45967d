"""Checkpoints from one layout to another: python -m deberta_jax.convert --from=DIR --to=DIR

--layout=transformers   `model.safetensors`, `config.json`, tokenizer files (the default)
--layout=microsoft      the same tensors as `pytorch_model.bin`, which the original code reads
--layout=orbax          our own parameter tree, sharded as Orbax does

Every tensor of the source is carried over, heads too, in its own type and bit for bit.
"""

import shutil
from pathlib import Path

from absl import flags

from deberta_jax import command
from deberta_jax.errors import UserError
from deberta_jax.interop import layouts
from deberta_jax.runs.loading import open_checkpoint

_LAYOUTS = {
    "transformers": layouts.write_transformers,
    "microsoft": layouts.write_microsoft,
    "orbax": layouts.write_orbax,
}
# What a tokenizer is made of, in any of the layouts that we read.
_TOKENIZER_FILES = (
    "spm.model", "spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "bpe_encoder.bin",
)  # fmt: skip


def main(parsed) -> None:
    for name in ("from", "to"):
        if not parsed[name].value:
            raise UserError(f"--{name} is missing; it names a directory")
    source, target = (Path(parsed[name].value).expanduser() for name in ("from", "to"))
    if not source.is_dir():
        raise UserError(f"--from={source} is no directory; it must hold a checkpoint or a run")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to={target} is not empty; name a new directory")
    checkpoint, tokenizer_directory = open_checkpoint(source)
    target.mkdir(parents=True, exist_ok=True)
    _LAYOUTS[parsed.layout](checkpoint, target)
    for name in _TOKENIZER_FILES:
        if (tokenizer_directory / name).is_file():
            shutil.copyfile(tokenizer_directory / name, target / name)
    written = sorted(path.name for path in target.iterdir())
    print(f"{source} -> {target} ({parsed.layout}): {', '.join(written)}")


if __name__ == "__main__":
    flags.DEFINE_string("from", None, "Directory to read: a checkpoint or a run.")
    flags.DEFINE_string("to", None, "Directory to write; new or empty.")
    flags.DEFINE_enum("layout", "transformers", list(_LAYOUTS), "Layout to write.")
    command.run(main, workdir=False, needs_config=False)
