"""The search: MetaSchedule's task scheduler and XGBoost cost model over the points of a knob space.

The space is small and every point of it is valid, so it is generated whole (a ``ScheduleFn`` that returns a list).
Each round the cost model, trained on what was measured so far, ranks all points that are left; the best go to the
machine, with a few at random, without which the model would only ever learn about its own favourites.  A model on
features of loops cannot rank what it has not seen the like of: the first round is the neighbourhood of the analytic
default and a random sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule import _ffi_api as ffi
from tvm.s_tir.meta_schedule.arg_info import TensorInfo
from tvm.s_tir.meta_schedule.builder import BuilderInput
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.logging import get_logger, get_logging_func
from tvm.s_tir.meta_schedule.runner import RunnerInput, RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate, PySearchStrategy

from tvmq.errors import BoardError, ToolchainError
from tvmq.kernels.knobs import Knobs
from tvmq.tuning.hosts import Finalist, Host
from tvmq.tuning.journal import Journal, Trial
from tvmq.tuning.measure import Paired, arguments_of
from tvmq.tuning.tasks import Task

__all__ = ["Search", "require_cost_model"]

BATCH = 8
"""Points per round: the model learns often, and a killed process loses few trials."""
RANDOM_SHARE = 4
"""One of so many points is random."""
TRIAL_ROUNDS = 7
FINAL_ROUNDS = 41
FINALISTS = 4
SEED = 1
_FAILED_RATIO = 1e3
"""What the cost model is told of a point that could not be built or run."""


def require_cost_model() -> None:
    """Check that the cost model's library is there.

    Raises
    ------
    ToolchainError
        If it is not; the message says how to install it.
    """
    try:
        import xgboost  # noqa: F401
    except ImportError:
        raise ToolchainError("tuning needs xgboost; install it with `pip install 'tvmq[tune]'`") from None


class Search:
    """The search for the best point of one kernel.

    Parameters
    ----------
    task : Task
        The kernel.
    host : Host
        Where it is measured.
    journal : Journal
        What was measured before, and where new trials are kept.
    alive : callable
        False ends the search after the trial that runs.
    report : callable
        Called after every round.
    default : dict of str to int, optional
        What every point is compared with; default: the analytic schedule.
    promising : sequence of dict of str to int
        Points to measure first.
    """

    def __init__(
        self,
        task: Task,
        host: Host,
        journal: Journal,
        alive: Callable[[], bool] = lambda: True,
        report: Callable[[], None] = lambda: None,
        default: Knobs | None = None,
        promising: Sequence[Knobs] = (),
    ) -> None:
        self.promising = [dict(point) for point in promising]
        self.task, self.host, self.journal, self.alive, self.report = task, host, journal, alive, report
        self.points = _points(task, host)
        self._default = self._apply(self.points[0] if default is None else default)
        self._arguments = [TensorInfo(dtype, shape) for shape, dtype in arguments_of(task.function)]
        self._target = task.target.tvm_target()

    def run(self, trials: int) -> None:
        """Measure until the journal has so many trials, or all points.

        Parameters
        ----------
        trials : int
        """
        if min(trials, len(self.points)) <= len(self.journal.trials) or not self.alive():
            return
        strategy = _Strategy(self, trials, self._arguments)
        space = meta_schedule.space_generator.ScheduleFn(
            lambda _: [self._schedule(point) for point in self.points], sch_rules=[], postprocs=[], mutator_probs={}
        )
        context = _tune_context(self.task, space, strategy)
        meta_schedule.task_scheduler.RoundRobin().tune(
            tasks=[context],
            task_weights=[1.0],
            max_trials_global=trials,
            max_trials_per_task=trials,
            num_trials_per_iter=BATCH,
            builder=self.host.builder(self._default, self.alive),
            runner=self.host.runner(TRIAL_ROUNDS, self.alive),
            measure_callbacks=[],
            database=meta_schedule.database.MemoryDatabase(),
            cost_model=None,
        )

    def finals(self) -> tuple[Knobs, Paired] | None:
        """The best of the journal, measured more often; None if nothing is faster than the default for certain.

        Where costs are simulated, all that cost nearly as little as the best one come to the finals.

        Returns
        -------
        tuple of (Knobs, Paired) or None
        """
        ranked = self.finalists(self._count_near() if self.host.simulates else FINALISTS)
        results = self.measure(ranked, FINAL_ROUNDS)
        found = [
            Finalist(knobs, self._apply(knobs), paired)
            for knobs, paired in zip(ranked, results, strict=True)
            if isinstance(paired, Paired)
        ]
        # What is not faster by more than the times scatter may be slower tomorrow.
        sure = [item for item in found if item.times.ratio + max(item.times.spread, self.host.smallest_gain) < 1]
        if not sure:
            return None
        best = self.host.best(sure)
        return best.knobs, best.times

    def _count_near(self) -> int:
        """How many points of the journal the host cannot tell from the best one."""
        ratios = [trial.ratio for trial in self.journal.trials if trial.ratio is not None]
        return sum(ratio * (1 - self.host.smallest_gain) <= min(ratios) for ratio in ratios)

    def finalists(self, count: int) -> list[Knobs]:
        """The best points of the journal but the default, the best first.

        Parameters
        ----------
        count : int

        Returns
        -------
        list of dict of str to int
            At most `count`.
        """
        rivals = [trial for trial in self.journal.trials if trial.ratio is not None and trial.knobs != self.points[0]]
        return [trial.knobs for trial in sorted(rivals, key=lambda trial: trial.ratio or 0.0)[:count]]

    def default_times(self) -> Paired:
        """The default against itself.

        Raises
        ------
        ToolchainError
            If it cannot be built or run.
        BoardError
            If the board it was to run on is lost.
        """
        (result,) = self.measure(self.points[:1], TRIAL_ROUNDS)
        if isinstance(result, str):
            if self.host.failure is not None:
                raise BoardError(self.host.failure)
            raise ToolchainError(f"{self.task.title}: could not be measured on {self.host.name}: {result}")
        return result

    def measure(self, points: Sequence[Knobs], rounds: int) -> list[Paired | str]:
        """Times of points.

        Parameters
        ----------
        points : sequence of dict of str to int
        rounds : int
            Times of each.

        Returns
        -------
        list of Paired or str
            Or why a point could not be measured.
        """
        builder, runner = self.host.builder(self._default, self.alive), self.host.runner(rounds, self.alive)
        results: list[Paired | str] = []
        for point in points:
            (built,) = builder.build([BuilderInput(self._schedule(point).mod, self._target)])
            if built.error_msg is not None:
                results.append(str(built.error_msg))
                continue
            (future,) = runner.run([RunnerInput(built.artifact_path, "cpu", self._arguments)])
            results.append(_paired(future.result()))
        return results

    def _apply(self, point: Knobs) -> tvm.tirx.PrimFunc:
        return self.task.kind.apply(self.task.function, self.task.target, point)

    def _schedule(self, point: Knobs) -> s_tir.Schedule:
        return s_tir.Schedule(tvm.IRModule({"main": self._apply(point).with_attr("global_symbol", "main")}))


@derived_object
class _Strategy(PySearchStrategy):
    """Ranks the points that are left with the cost model; a :class:`Search` says what is known."""

    def __init__(self, search: Search, trials: int, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.search, self.trials, self.arguments = search, trials, arguments
        self.random = np.random.default_rng(SEED)
        self.candidates: list[MeasureCandidate] = []
        self.pending: list[int] = []
        self.context: Any = None
        self.model = meta_schedule.cost_model.XGBModel(
            extractor=_Features(), num_warmup_samples=0, num_tuning_cores=1, adaptive_training=False, verbose_eval=0
        )

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.context = context

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        self.candidates = [MeasureCandidate(schedule, self.arguments) for schedule in design_spaces]
        self._learn(self.search.journal.trials)

    def post_tuning(self) -> None:
        pass

    def generate_measure_candidates(self) -> Any:
        done = [trial.knobs for trial in self.search.journal.trials]
        left = [index for index, point in enumerate(self.search.points) if point not in done]
        count = min(BATCH, self.trials - len(done))
        if not left or count < 1 or not self.search.alive():
            return None
        self.pending = self._chosen(left, count, bool(done))
        return [self.candidates[index] for index in self.pending]

    def _chosen(self, left: list[int], count: int, known: bool) -> list[int]:
        order = [int(index) for index in self.random.permutation(left)]
        if known:
            scores = dict(zip(left, self.model.predict(self.context, [self.candidates[i] for i in left]), strict=True))
            ranked = sorted(left, key=lambda index: -scores[index])
        else:
            points, promising = self.search.points, self.search.promising
            ranked = sorted(order, key=lambda i: (points[i] not in promising, _changes(points[i], points[0])))
        share = max(1, count // RANDOM_SHARE) if known else max(0, count // 2 - len(self.search.promising))
        best = ranked[: count - share]
        return [*best, *[index for index in order if index not in best][: count - len(best)]]

    def notify_runner_results(self, measure_candidates: Any, results: Any) -> None:
        if not self.search.alive():
            return  # what was interrupted is not a trial
        trials = [self._trial(index, result) for index, result in zip(self.pending, results, strict=True)]
        for trial in trials:
            self.search.journal.add(trial)
        self._learn(trials)
        self.search.report()

    def _trial(self, index: int, result: Any) -> Trial:
        point = self.search.points[index]
        paired = _paired(result)
        if isinstance(paired, str):
            return Trial(point, None, None, None)
        return Trial(point, paired.ratio, paired.seconds, paired.default_seconds)

    def _learn(self, trials: Sequence[Trial]) -> None:
        places = [self.search.points.index(trial.knobs) for trial in trials if trial.knobs in self.search.points]
        ratios = [trial.ratio or _FAILED_RATIO for trial in trials if trial.knobs in self.search.points]
        known = [self.candidates[place] for place in places]
        self.model.update(self.context, known, [RunnerResult([ratio], None) for ratio in ratios])

    def clone(self) -> Any:
        raise NotImplementedError("a search has one task")


@derived_object
class _Features(PyFeatureExtractor):
    """The features of the loops of a candidate, extracted once: every round ranks all that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = meta_schedule.feature_extractor.PerStoreFeature()
        self.known: dict[Any, Any] = {}

    def extract_from(self, context: Any, candidates: Any) -> Any:
        new = [candidate for candidate in candidates if candidate not in self.known]
        self.known.update(zip(new, self.extractor.extract_from(context, new), strict=True))
        return [self.known[candidate] for candidate in candidates]


def _points(task: Task, host: Host) -> list[Knobs]:
    """The space, the default first.

    One thread is simulated, to which a schedule that leaves other threads idle is as good as any: such a record would
    be changed when it is looked up, so it is left out.
    """
    points = task.kind.space(task.function, task.target)
    if not host.simulates:
        return points
    return [point for point in points if point == points[0] or _stays(task, point)]


def _stays(task: Task, point: Knobs) -> bool:
    return task.kind.adapted(task.function, task.target, point) == point


def _changes(point: Knobs, default: Knobs) -> int:
    """Number of knobs that differ."""
    return sum(value != default[name] for name, value in point.items())


def _paired(result: Any) -> Paired | str:
    if result.run_secs is None:
        return str(result.error_msg).strip().splitlines()[-1]
    return Paired.from_times([float(time) for time in result.run_secs])


def _tune_context(task: Task, space: Any, strategy: Any) -> Any:
    """A context without its constructor, which loads the tensor intrinsics of all cores for 14 seconds."""
    context = meta_schedule.TuneContext.__new__(meta_schedule.TuneContext)
    module = tvm.IRModule({"main": task.function.with_attr("global_symbol", "main")})
    log = get_logging_func(get_logger(__name__))
    context.__init_handle_by_constructor__(
        ffi.TuneContext, module, task.target.tvm_target(), space, strategy, "kernel", 1, SEED, log
    )
    ffi.TuneContextInitialize(context)
    return context
