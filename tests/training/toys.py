"""Objectives that compile in a second: two regressions, and faults put into them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.training.trainable import Stage

ROWS = 8
# What of a step a fault multiplies: its loss, or the gradient of a stage.
PLACES = ("loss", "first gradient", "second gradient")


class TwoLines:
    """Two regressions, one after another: the second learns what the updated first one makes."""

    groups = ("first", "second")

    def init(self, rng):
        values = jax.random.normal(rng, (2, 3))
        return {name: {"slope": x} for name, x in zip(self.groups, values, strict=True)}

    def depths(self, params):
        return jax.tree.map(lambda _: 1, params)

    def parameter_groups(self, params):
        return {name: jax.tree.map(lambda _, name=name: name, params[name]) for name in params}

    def optimizer_config(self, group, config):
        rate = config.learning_rate * (1 if group == "first" else 10)
        return dataclasses.replace(config, learning_rate=rate)

    def weights(self, batch):
        return {"rows": jnp.float32(len(batch["x"]))}

    def summarize(self, sums, weights):
        return {name: total / weights["rows"] for name, total in sums.items()}

    def stages(self):
        def first(params, batch, weights, rng):
            outputs = batch["x"] @ params["first"]["slope"]
            loss = jnp.sum((outputs - batch["y"]) ** 2)
            noise = jax.random.normal(rng, ())
            return loss / weights["rows"], ({"loss": loss, "noise": noise}, {"outputs": outputs})

        def second(params, batch, weights, rng):
            now = batch["x"] @ params["first"]["slope"]
            outputs = batch["x"] @ params["second"]["slope"]
            loss = jnp.sum((outputs - now - batch["outputs"]) ** 2)
            noise = jax.random.normal(rng, ())
            return loss / weights["rows"], ({"second": loss, "noise_2": noise}, {})

        return Stage(("first",), first), Stage(("second",), second)

    def loss(self, params, batch, weights, rng, train):
        del train
        outputs = batch["x"] @ params["first"]["slope"]
        loss = jnp.sum((outputs - batch["y"]) ** 2)
        return loss / weights["rows"], {"loss": loss}

    def observe(self, params):
        del params
        return {}


class Faulty(TwoLines):
    """Multiplies its loss and gradients by `fault` [B, 3] of the batch (`PLACES`), and by noise.

    The noise makes a result depend on the key of each step.
    """

    def stages(self):
        def wrapped(number, loss):
            def faulty(params, batch, weights, rng):
                value, (sums, additions) = loss(params, batch, weights, rng)
                fault = jnp.mean(batch["fault"], axis=0)
                value = value * (1 + 0.1 * jax.random.normal(rng, ())) * fault[1 + number]
                if "loss" in sums:
                    sums = sums | {"loss": sums["loss"] * fault[0]}
                return value, (sums, additions)

            return faulty

        return tuple(
            Stage(stage.groups, wrapped(number, stage.loss))
            for number, stage in enumerate(super().stages())
        )


def data(seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(ROWS, 3)).astype("f"), "y": rng.normal(size=ROWS).astype("f")}


def batch_of(seed, place=None, value=1.0, row=0):
    """A batch, with a fault in one of its rows where a place is named."""
    fault = np.ones((ROWS, 3), np.float32)
    if place is not None:
        fault[row, PLACES.index(place)] = value
    return data(seed) | {"fault": fault}
