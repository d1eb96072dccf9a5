"""Checks the settings of an engine, as far as they need no model: without torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from dwellmoe.cache.budget import check_capacity
from dwellmoe.cache.policies.base import check_live_policy
from dwellmoe.cache.predictors import predictor_names
from dwellmoe.cache.tiers.prefill_decode import SHARED, parse_prefill_handoff
from dwellmoe.cache.tiers.tier_policy import PLACEMENT
from dwellmoe.errors import UserError, unknown_name
from dwellmoe.registry import name_of, options_of
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import EXPERT_FORMATS

DENSE_FORMATS = [name for name in EXPERT_FORMATS if name != "as_stored"]
GATE_AHEAD, SCOUTGATE, RECORDED = "gate_ahead", "scoutgate", "recorded"
FUSED = f"{GATE_AHEAD}+{SCOUTGATE}"
SHARE = 0.75
"""Weight of ScoutGate beside the gate; measured in docs/results.md."""


def check_settings(settings: EngineSettings) -> None:
    """Checks everything that needs no model. Raises UserError."""
    check_budgets(settings)
    if settings.decode_policy != PLACEMENT:
        check_live_policy(settings.decode_policy, f"--decode_policy {settings.decode_policy}")
    if settings.prefill_policy:
        check_live_policy(settings.prefill_policy, f"--prefill_policy {settings.prefill_policy}")
    rule, _ = parse_prefill_handoff(settings.prefill_handoff)
    if settings.decode_policy == PLACEMENT and (settings.prefill_policy or rule == SHARED):
        raise UserError("--decode_policy placement: leave out --prefill_policy and --prefill_handoff shared")
    if settings.dense_format and name_of(settings.dense_format) not in DENSE_FORMATS:
        raise unknown_name("--dense_format", name_of(settings.dense_format), DENSE_FORMATS)
    validate_predictor(settings.prefetch_predictor)
    if settings.placement_predictor:
        validate_predictor(settings.placement_predictor, "placement_predictor")
        if settings.decode_policy != PLACEMENT:
            raise UserError("--placement_predictor has no effect without --decode_policy placement")


def check_budgets(settings: EngineSettings) -> None:
    """Raises UserError for a budget that is not written as slots, percent or bytes."""
    for name in ("expert_budget", "ram_budget"):
        text = getattr(settings, name)
        if text or name == "expert_budget":
            with naming(name, text):
                check_capacity(text.strip())


@contextmanager
def naming(option: str, value: str, more: str = "") -> Iterator[None]:
    """Names the option and its value in the UserError of a block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--{option} {value}: {error}{more}") from None


def live_predictor_names() -> list[str]:
    """All that can follow a running model: recorded predictions belong to a trace."""
    return sorted({GATE_AHEAD, SCOUTGATE, FUSED, *predictor_names()} - {RECORDED})


def validate_predictor(spec: str, option: str = "prefetch_predictor") -> None:
    """Checks everything about a predictor's name and options that needs no model. Raises UserError."""
    if name_of(spec) not in live_predictor_names():
        raise unknown_name(option.replace("_", " "), name_of(spec), live_predictor_names())
    if name_of(spec) == GATE_AHEAD:
        options_of(GATE_AHEAD, spec, lambda: None)
    elif name_of(spec) in (SCOUTGATE, FUSED):
        weights, share = scout_options(spec)
        if not weights:
            raise UserError(f"--{option} {name_of(spec)}: give its weights, {name_of(spec)}:weights=FILE")
        if not 0 <= share <= 1:
            raise UserError(f"--{option} {name_of(spec)}: share {share} must be between 0 and 1")


def scout_options(spec: str) -> tuple[str, float]:
    """Weights file and share; ScoutGate alone has no option `share`."""

    def alone(*, weights: str = "") -> None: ...

    def beside(*, weights: str = "", share: float = SHARE) -> None: ...

    given = options_of(name_of(spec), spec, alone if name_of(spec) == SCOUTGATE else beside)
    return str(given.get("weights", "")), float(given.get("share", SHARE))
