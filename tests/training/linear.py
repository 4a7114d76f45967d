"""The smallest thing that can be trained: a line through points. It compiles in a second."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import schema
from deberta_jax.training import loop, signals
from deberta_jax.training.config import ProfileConfig
from deberta_jax.training.program import make_program
from deberta_jax.training.step_units import StepUnits
from deberta_jax.training.trainable import Stage

ROWS = 8


class Line:
    groups = ("default",)

    def init(self, rng):
        return {"dense": {"kernel": jax.random.normal(rng, (4, 2)), "bias": jnp.zeros(2)}}

    def depths(self, params):
        return jax.tree.map(lambda _: 0, params)

    def parameter_groups(self, params):
        return jax.tree.map(lambda _: "default", params)

    def optimizer_config(self, group, config):
        return config

    def stages(self):
        def loss(params, batch, weights, rng):
            value, sums = self.loss(params, batch, weights, rng, train=True)
            return value, (sums, {})

        return (Stage(self.groups, loss),)

    def weights(self, batch):
        return {"rows": jnp.float32(batch["x"].shape[0])}

    def loss(self, params, batch, weights, rng, train):
        made = batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"]
        total = jnp.sum((made - batch["y"]) ** 2)
        return total / weights["rows"], {"loss": total}

    def observe(self, params):
        return {}

    def summarize(self, sums, weights):
        return {"loss": sums["loss"] / weights["rows"]}


def config(steps=9, **train):
    """Of a run of so many steps, a checkpoint every third, an evaluation every fifth."""
    made = schema.freeze(schema.default())
    settings = dict(
        duration=f"{steps} steps", batch_size=ROWS, log_every="1 step", eval_every="5 steps",
        checkpoint_every="3 steps",
    )  # fmt: skip
    return dataclasses.replace(
        made,
        train=dataclasses.replace(made.train, **settings | train),
        optimizer=dataclasses.replace(made.optimizer, learning_rate=0.1, warmup="0"),
    )


def batches(sample=0, seed=3):
    """Every sample is what its number says."""
    while True:
        rng = np.random.default_rng((seed, sample))
        x = rng.normal(size=(ROWS, 4)).astype(np.float32)
        yield {"x": x, "y": x[:, :2] - x[:, 2:]}
        sample += ROWS


def train(settings, workdir, measure=None, read=batches):
    """The real loop, in `workdir`; `measure` and `read` as `loop.train` takes them."""
    units = StepUnits(float(ROWS), 100.0).with_total("train.duration", settings.train.duration)
    program = make_program(settings, Line(), units, jax.devices()[:1])

    def held_out(params):
        signals.check()
        return program.evaluate(params, [next(batches(10**6))])

    return loop.train(
        program,
        read,
        measure or held_out,
        config=settings.train,
        profile=ProfileConfig(),
        seed=0,
        workdir=workdir,
        flops_per_token=1.0,
    )
