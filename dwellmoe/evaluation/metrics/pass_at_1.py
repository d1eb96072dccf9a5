"""pass@1: the share of programs, run in the sandbox, that reach their end."""

from collections import Counter
from types import MappingProxyType

from tqdm import tqdm

from dwellmoe.cache.intervals import RESAMPLES, bootstrap_ci
from dwellmoe.evaluation import metrics
from dwellmoe.evaluation.sandbox.confine import BACKENDS
from dwellmoe.evaluation.sandbox.run import Verdict, check_sandbox, run_program


class PassAt_1(metrics.RequestMetric):
    """`pass_at_1` with its interval, `verdicts` (how many programs passed, failed, timed out, ...) and
    `sandbox`, the backend that confined them.

    `compute(predictions=, backends=)`: whole programs, one a request, which raise unless the answer is right.
    Raises UserError where this machine cannot isolate them.
    """

    COLUMNS = MappingProxyType({"predictions": "string"})

    def _compute(self, predictions, backends=BACKENDS, resamples=RESAMPLES):
        programs = tqdm(predictions, desc="programs", unit="program", leave=False)
        outcomes = [run_program(program, backends=backends) for program in programs]
        right = [float(outcome.verdict is Verdict.PASSED) for outcome in outcomes]
        return {
            "pass_at_1": sum(right) / len(right),
            "pass_at_1_ci95": bootstrap_ci(right, resamples=resamples),
            "verdicts": dict(Counter(outcome.verdict.value for outcome in outcomes)),
            "sandbox": check_sandbox(backends),
        }
