"""A search: every trial's fields are chosen by the results of the trials before it (Optuna)."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import UserError
from deberta_jax.report.series import is_loss
from deberta_jax.sweeps.variants import Run
from deberta_jax.training.metrics import last_held_out

SAMPLERS = ("tpe", "random")
JOURNAL = "search.journal"


class Search:
    """The trials of `search(trial)`, kept in a journal in the sweep's workdir.

    A trial that was running when the sweep was killed goes on; one that failed counts as one.
    """

    def __init__(
        self,
        overrides: Callable[[object], Mapping[str, object]],
        make: Callable[[str, Mapping[str, object]], Run],
        workdir: Path,
        trials: int,
        sampler: str,
        metric: str,
        seed: int,
    ):
        """
        Args:
            overrides: what the sweep file defines: a trial's fields.
            make: (name, fields) to run, checked.
            workdir: of the sweep.
            trials: how many in all.
            sampler: one of SAMPLERS.
            metric: what is made as small (a loss) or as great as can be.
            seed: of the sampler.

        Raises:
            UserError: Optuna is not installed, or there is no such sampler.
        """
        if trials < 1:
            raise UserError(f"--trials={trials} must be at least 1")
        if sampler not in SAMPLERS:
            raise UserError(f"--sampler={sampler} must be one of {', '.join(SAMPLERS)}")
        self._overrides, self._make, self._metric = overrides, make, metric
        self._study = _study(workdir, sampler, metric, seed)
        self._most = trials
        self._runs: dict[int, Run] = {}
        self._left: list[Run] = []
        for trial in self._study.get_trials(deepcopy=False):
            if "overrides" not in trial.user_attrs:  # killed while it was being made
                failed = _optuna().trial.TrialState.FAIL
                self._study.tell(trial.number, state=failed, skip_if_finished=True)
                continue
            run = self._run(trial.number, json.loads(trial.user_attrs["overrides"]))
            if not trial.state.is_finished():
                self._left.append(run)

    def known(self) -> Sequence[Run]:
        return list(self._runs.values())

    def take(self) -> Run | None:
        if self._left:
            return self._left.pop(0)
        if len(self._runs) >= self._most:
            return None
        trial = self._study.ask()
        overrides = self._overrides(trial)
        if not isinstance(overrides, Mapping):
            raise UserError(f"search() gives {overrides!r}; it must return a dict of fields")
        trial.set_user_attr("overrides", json.dumps(dict(overrides)))
        return self._run(trial.number, overrides)

    def tell(self, run: Run, done: bool) -> None:
        (number,) = (number for number, known in self._runs.items() if known.name == run.name)
        value = last_held_out(run.workdir).get(self._metric) if done else None
        if done and value is None:
            raise UserError(f"METRIC is {self._metric!r}, which the runs do not measure")
        state = _optuna().trial.TrialState.FAIL
        self._study.tell(number, value, state=None if done else state, skip_if_finished=True)

    def best(self) -> Run | None:
        """The best run so far."""
        complete = _optuna().trial.TrialState.COMPLETE
        if not self._study.get_trials(deepcopy=False, states=(complete,)):
            return None
        return self._runs[self._study.best_trial.number]

    def _run(self, number: int, overrides: Mapping[str, object]) -> Run:
        run = self._make(f"trial_{number:03}", overrides)
        self._runs[number] = run
        return run


def _study(workdir: Path, sampler: str, metric: str, seed: int) -> Any:
    if storage.is_url(workdir):
        raise UserError(
            f"--workdir={workdir}: a search keeps its journal on a disk; name a local directory "
            "(a sweep of given variants may be in a bucket)"
        )
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(workdir / JOURNAL))
    study = optuna.create_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(backend),
        direction="minimize" if is_loss(metric) else "maximize",
        load_if_exists=True,
    )
    # A sampler that begins anew would draw once more what it drew then.
    seed += len(study.get_trials(deepcopy=False))
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study.sampler = samplers[sampler](seed=seed)
    return study


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "a search needs Optuna, which is not installed: pip install -e '.[search]'"
        ) from error
    return optuna
