"""Durations as a person states them."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.training.step_units import StepUnits

CLOCK = StepUnits(tokens_per_step=1000.0, steps_per_epoch=40.0, total_steps=500)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("10k steps", 10_000),
        ("1M steps", 10**6),
        ("1 step", 1),
        ("7", 7),
        ("1_000 steps", 1000),
        ("2.5 epochs", 100),
        (".5 epochs", 20),
        ("1 epoch", 40),
        ("1B tokens", 10**6),
        ("1.5M tokens", 1500),
        ("10%", 50),
        ("  10 %  ", 50),
        ("0", 0),
        ("0%", 0),
    ],
)
def test_every_unit_turns_into_steps(duration, steps):
    assert CLOCK.steps("train.duration", duration) == steps


@pytest.mark.parametrize("duration", ["1 tokens", "0.001 epochs", "0.01%"])
def test_less_than_a_step_is_a_step(duration):
    assert CLOCK.steps("train.log_every", duration) == 1


@pytest.mark.parametrize(
    "duration",
    [
        "",
        " ",
        "ten steps",
        "-5 steps",
        "5 parsecs",
        "1e4 steps",
        "steps",
        "%",
        "1.2.3",
        "nan",
        "5 5",
    ],
)
def test_what_is_no_duration_names_its_field(duration):
    with pytest.raises(UserError, match=r"train\.eval_every is .*must be a duration"):
        CLOCK.steps("train.eval_every", duration)


def test_a_percentage_needs_the_length_of_the_run():
    with pytest.raises(UserError, match=r"train\.duration is '10%'"):
        StepUnits(1000.0, 40.0).steps("train.duration", "10%")
