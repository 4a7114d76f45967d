"""Files of replaced token detection with random weights, under the names that they are released."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import models

from deberta_jax.interop.files import write_tensors
from tests.interop import released
from tests.interop.released import torch

WORDS = "deberta.embeddings.word_embeddings.weight"
WORD_DELTA = "deberta.embeddings.word_embeddings._weight"
POSITIONS = "deberta.embeddings.position_embeddings.weight"
POSITION_DELTA = "deberta.embeddings.position_embeddings._weight"
WIDTH, VOCAB = 64, 150
HEAD = {
    "mask_predictions.LayerNorm.weight": (WIDTH,),
    "mask_predictions.LayerNorm.bias": (WIDTH,),
    "mask_predictions.dense.weight": (WIDTH, WIDTH),
    "mask_predictions.dense.bias": (WIDTH,),
    "mask_predictions.classifier.weight": (1, WIDTH),
    "mask_predictions.classifier.bias": (1,),
}
SPECIALS = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}


class Files(NamedTuple):
    """What training by replaced token detection holds, as NumPy arrays under released names.

    Attributes:
        discriminator: with its summed word table, the generator's position table, and its head.
        generator: a masked LM with the position table of the mask decoder.
        delta: float32 [V, E]; the discriminator's word table is the generator's plus this.
    """

    discriminator: dict
    generator: dict
    delta: np.ndarray


def make(seed: int, layers: int = 4, family: str = "v3", **options) -> Files:
    """Both models of `transformers` with what its classes lack, every number random."""
    rng = np.random.default_rng(seed)
    options |= {"num_hidden_layers": layers}
    body = released.make(family, "Model", seed, **options).state_dict()
    discriminator = {f"deberta.{name}": x.numpy() for name, x in body.items()}
    discriminator |= {name: _noise(rng, *shape) for name, shape in HEAD.items()}
    options["num_hidden_layers"] = layers // 2
    masked_lm = released.make(family, "ForMaskedLM", seed + 1, **options).state_dict()
    # The decoder is tied to the word table, and no released file holds it.
    generator = {name: x.numpy() for name, x in masked_lm.items() if ".decoder." not in name}
    positions = _noise(rng, 512, WIDTH)
    delta = _noise(rng, *generator[WORDS].shape)
    discriminator |= {WORDS: generator[WORDS] + delta, POSITIONS: positions}
    return Files(discriminator, generator | {POSITIONS: positions}, delta)


def _noise(rng, *shape) -> np.ndarray:
    return rng.normal(0, 0.1, shape).astype(np.float32)


def lm_head(seed: int) -> dict:
    """A masked-LM head of its own, such as released discriminators carry."""
    masked_lm = released.make("v3", "ForMaskedLM", seed).state_dict()
    return {name: x.numpy() for name, x in masked_lm.items() if name.startswith("lm_predictions")}


def config(layers: int, **fields) -> dict:
    """A released config, which names no `model_type`."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "relative_attention": True,
        "position_biased_input": False,
        "max_relative_positions": -1,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
    } | fields


def write_bin(tensors: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)


def write_json(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_folder(tensors: dict, layers: int, directory: Path, **fields) -> Path:
    """A checkpoint by the names that `transformers` gives its files."""
    write_tensors(tensors, directory)
    write_json(config(layers, **fields), directory / "config.json")
    return directory


def prefixed(files: Files) -> dict:
    """The tensors of both models as one state dict."""
    parts = {"generator": files.generator, "discriminator": files.discriminator}
    return {f"{part}.{name}": x for part, own in parts.items() for name, x in own.items()}


def write_tokenizer(directory: Path, tokens: int) -> None:
    """A tokenizer of whole words."""
    pieces = [*SPECIALS.values(), *(f"word{number}" for number in range(tokens - 5))]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    directory.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.save(str(directory / "tokenizer.json"))
    settings = {f"{role}_token": piece for role, piece in SPECIALS.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(settings, directory / "tokenizer_config.json")
