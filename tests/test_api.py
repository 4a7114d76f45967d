"""What `import deberta_jax` offers, and what its functions make of a config."""

import dataclasses

import jax
import jax.numpy as jnp

import deberta_jax
from deberta_jax import api, schema
from deberta_jax.kernels import attention
from deberta_jax.model.compute import ComputeConfig
from deberta_jax.model.heads import Deberta
from tests.model import small


def test_every_name_that_is_offered_is_there():
    assert set(deberta_jax.__all__) == set(api.__all__)
    assert all(getattr(deberta_jax, name) is getattr(api, name) for name in api.__all__)


def test_a_relative_data_dir_is_kept_absolute(tmp_path, monkeypatch):
    """A run is evaluated from another working directory than it was trained in."""
    monkeypatch.chdir(tmp_path)
    config = schema.freeze(schema.default())

    def kept(directory):
        data = dataclasses.replace(config.data, dir=directory)
        return api._checked(dataclasses.replace(config, data=data)).data.dir

    assert kept("prepared") == str(tmp_path / "prepared")
    assert kept(str(tmp_path)) == str(tmp_path)
    assert kept("gs://bucket/data") == "gs://bucket/data" and kept("") == ""


def test_parameters_are_made_without_a_warning_of_attention(caplog):
    """A program for another platform is planned here: only what it computes may fall back."""
    attention._log_once.cache_clear()
    model = Deberta(small.SMALL, ComputeConfig(dtype="bfloat16"))
    ids = jnp.ones((1, 8), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)
    assert "falls back" not in caplog.text
    jax.eval_shape(model.apply, shapes, ids)
    fallback = attention.default_implementation().name != "xla"
    assert ("falls back" in caplog.text) is fallback
