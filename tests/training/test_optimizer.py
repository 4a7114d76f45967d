"""The optimizer against loops written out in NumPy, the schedules against closed forms."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax.errors import UserError
from deberta_jax.objectives.mlm import MaskedLanguageModelling
from deberta_jax.training.config import OptimizerConfig
from deberta_jax.training.optimizer import decay_mask, make_optimizer, make_schedule
from deberta_jax.training.step_units import StepUnits
from tests.model import small

PEAK, FINAL, WARMUP, DECAY, TOTAL = 2e-3, 2e-4, 100, 200, 1000
CLOCK = StepUnits(1000.0, 40.0, TOTAL)


def schedule(name, clock=CLOCK, **changes):
    settings = dict(learning_rate=PEAK, warmup="10%", decay="20%", final_share=0.1)
    return make_schedule(OptimizerConfig(schedule=name, **settings | changes), clock)


def linear(step):
    return PEAK + (FINAL - PEAK) * (step - WARMUP) / (TOTAL - WARMUP)


def cosine(step):
    share = (step - WARMUP) / (TOTAL - WARMUP)
    return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * share)) / 2


def wsd(step):
    return PEAK + (FINAL - PEAK) * max(0, step - TOTAL + DECAY) / DECAY


def rsqrt(step):
    flat = min(step, TOTAL - DECAY)
    value = PEAK * math.sqrt(WARMUP / flat)
    return value + (FINAL - value) * (step - flat) / DECAY


SHAPES = {"linear": linear, "cosine": cosine, "wsd": wsd, "rsqrt": rsqrt}


@pytest.mark.parametrize("name", SHAPES)
def test_schedules_follow_their_closed_forms(name):
    rate = schedule(name)
    for step in (0, 1, 50, 99):
        assert float(rate(step)) == pytest.approx(PEAK * step / WARMUP, rel=1e-5)
    for step in (WARMUP, 101, 400, 550, TOTAL - DECAY, TOTAL - DECAY + 1, 900, 999, TOTAL):
        assert float(rate(step)) == pytest.approx(SHAPES[name](step), rel=1e-4), step
    assert float(rate(WARMUP)) == pytest.approx(PEAK)
    assert float(rate(TOTAL)) == pytest.approx(FINAL)


@pytest.mark.parametrize("name", SHAPES)
def test_without_warmup_the_first_step_takes_the_peak(name):
    assert float(schedule(name, warmup="0")(0)) == pytest.approx(PEAK)


@pytest.mark.parametrize("name", SHAPES)
def test_a_warmup_longer_than_the_run_is_an_error(name):
    with pytest.raises(UserError, match=r"optimizer\.warmup '1001 steps'.*1000 steps"):
        schedule(name, warmup="1001 steps")


@pytest.mark.parametrize("name", ["wsd", "rsqrt"])
def test_warmup_and_decay_must_fit_into_the_run_together(name):
    with pytest.raises(UserError, match=r"optimizer\.warmup.*optimizer\.decay"):
        schedule(name, warmup="60%", decay="50%")


def test_an_unknown_schedule_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match=r"optimizer\.schedule is 'step'.*'rsqrt'"):
        schedule("step")


@pytest.mark.parametrize("options", small.VARIANTS.values(), ids=small.VARIANTS.keys())
def test_weight_decay_spares_biases_and_norms_and_nothing_else(options):
    objective = MaskedLanguageModelling(small.variant(**options))
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    params = nn.unbox(boxed)
    decays = jax.tree.leaves_with_path(decay_mask(params))
    assert len(decays) == len(jax.tree.leaves(params))
    for path, decayed in decays:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # The only parameters that are neither biases nor of a LayerNorm.
        weight = name.endswith(("/kernel", "/embedding", "_kernel"))
        of_norm = "norm/" in name
        assert decayed == weight and not (decayed and of_norm), name
    # The optimizer's state is made from boxed parameters: the same mask must come of those.
    assert jax.tree.leaves(decay_mask(boxed)) == [decayed for _, decayed in decays]


def parameters(seed):
    rng = np.random.default_rng(seed)
    return {
        "dense": {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)},
        "norm": {"scale": rng.normal(size=3)},
    }


def gradients(seed, steps):
    """Gradients of very different sizes, some larger than any clip."""
    rng = np.random.default_rng(seed + 1)
    shapes = parameters(seed)
    return [
        jax.tree.map(lambda x: rng.normal(size=x.shape) * 10.0 ** rng.integers(-4, 2), shapes)
        for _ in range(steps)
    ]


def run_ours(config, rate, params, grads):
    optimizer = make_optimizer(config, rate)
    params = jax.tree.map(jnp.float32, params)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        updates, state = step(jax.tree.map(jnp.float32, grad), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def run_numpy(config, rate, params, grads):
    """Adam by the book, in float64, on a flat dict."""
    flat = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(params)}
    mu = {name: np.zeros_like(x) for name, x in flat.items()}
    nu = {name: np.zeros_like(x) for name, x in flat.items()}
    for t, grad in enumerate(grads, start=1):
        grad = {jax.tree_util.keystr(path): g for path, g in jax.tree.leaves_with_path(grad)}
        norm = math.sqrt(sum((g**2).sum() for g in grad.values()))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name, x in flat.items():
            g = grad[name] * scale
            mu[name] = config.b1 * mu[name] + (1 - config.b1) * g
            nu[name] = config.b2 * nu[name] + (1 - config.b2) * g**2
            m, v = mu[name], nu[name]
            if config.bias_correction:
                m, v = m / (1 - config.b1**t), v / (1 - config.b2**t)
            decay = config.weight_decay if name.endswith("['kernel']") else 0.0
            update = m / (np.sqrt(v) + config.eps) + decay * x
            flat[name] = x - float(rate(t - 1)) * update
    return flat


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_is_the_loop_by_the_book(bias_correction, clip_norm, seed):
    config = OptimizerConfig(
        bias_correction=bias_correction, clip_norm=clip_norm, weight_decay=0.1, b2=0.98
    )
    rate, params, grads = schedule("linear", warmup="3 steps"), parameters(seed), gradients(seed, 8)
    ours, _ = run_ours(config, rate, params, grads)
    want = run_numpy(config, rate, params, grads)
    for path, x in jax.tree.leaves_with_path(ours):
        np.testing.assert_allclose(x, want[jax.tree_util.keystr(path)], rtol=2e-5, atol=2e-6)


def test_adamw_is_torch_s(seed):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    config = OptimizerConfig(weight_decay=0.1, clip_norm=0.0)
    params, grads = parameters(seed), gradients(seed, 8)
    ours, _ = run_ours(config, optax.constant_schedule(PEAK), params, grads)
    theirs = jax.tree.map(lambda x: torch.nn.Parameter(torch.tensor(x)), params)
    kernel, *others = theirs["dense"]["kernel"], theirs["dense"]["bias"], theirs["norm"]["scale"]
    optimizer = torch.optim.AdamW(
        [{"params": [kernel], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(config.b1, config.b2),
        eps=config.eps,
    )
    for grad in grads:
        for parameter, g in zip(jax.tree.leaves(theirs), jax.tree.leaves(grad), strict=True):
            parameter.grad = torch.tensor(g)
        optimizer.step()
    for x, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, want.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("norm", "expected"), [(20.0, 2.0), (0.5, 0.5)])
def test_only_a_gradient_longer_than_the_clip_is_scaled_down(norm, expected, seed):
    grad = gradients(seed, 1)[0]
    length = float(optax.tree.norm(grad))
    grad = jax.tree.map(lambda g: g * norm / length, grad)
    config = OptimizerConfig(clip_norm=2.0)
    _, state = run_ours(config, optax.constant_schedule(PEAK), parameters(seed), [grad])
    mu = next(part.mu for part in state if isinstance(part, optax.ScaleByAdamState))
    assert float(optax.tree.norm(mu)) == pytest.approx((1 - config.b1) * expected, rel=1e-5)


def test_layers_below_learn_by_so_much_less(seed):
    """Every step of a parameter is decay ** (layers above it) of what it would be without."""
    params, grads = parameters(seed), gradients(seed, 1)
    depths = {"dense": {"kernel": np.arange(5)[:, None], "bias": 3}, "norm": {"scale": 5}}
    taken = {}
    for decay, given in ((1.0, None), (0.5, depths)):
        config = OptimizerConfig(layer_decay=decay, weight_decay=0.1)
        optimizer = make_optimizer(config, optax.constant_schedule(PEAK), given)
        state = optimizer.init(params)
        taken[decay], _ = jax.jit(optimizer.update)(grads[0], state, params)
    share = jax.tree.map(lambda slow, whole: slow / whole, taken[0.5], taken[1.0])
    np.testing.assert_allclose(share["norm"]["scale"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(share["dense"]["bias"], 0.25, rtol=1e-5)
    want = np.broadcast_to(0.5 ** (5 - np.arange(5.0))[:, None], (5, 3))
    np.testing.assert_allclose(share["dense"]["kernel"], want, rtol=1e-5)
    with pytest.raises(UserError, match=r"optimizer\.layer_decay is 1\.5"):
        make_optimizer(OptimizerConfig(layer_decay=1.5), optax.constant_schedule(PEAK), depths)
