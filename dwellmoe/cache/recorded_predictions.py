"""Files of predictions that were computed beside a trace, and the check that they belong to it.

Letters: D decoded tokens of the trace, in its order, L layers, E experts a layer.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from dwellmoe.cache.tensor_file import map_tensors, write_tensors
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError

FORMAT, VERSION = "moe-use-predictions", "1"
LAYOUT = {"prior": ("LE", True), "early": ("DLE", False), "late": ("DLE", False)}  # shape, must be present
METADATA = ("format", "version", "trace_digest", "predictor")


@dataclass(frozen=True, eq=False)
class RecordedPredictions:
    """Probabilities of use, float32 in [0, 1], of every decoded token of one trace.

    prior         [L, E]     each expert's share of all tokens, predicted where nothing else is known
    early         [D, L, E]  known when the token's first layer begins, or None
    late          [D, L, E]  known when the layer before the one it is about begins, or None
    trace_digest  of the trace they are about (`digest_of`); predictor: its name
    UserError for a wrong shape, a value that is no probability, and where both `early` and `late` are None.
    """

    prior: np.ndarray
    early: np.ndarray | None
    late: np.ndarray | None
    trace_digest: str
    predictor: str

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in LAYOUT if getattr(self, name) is not None}
        wrong = [name for name, value in given.items() if value.ndim != len(LAYOUT[name][0])]
        if wrong:
            raise UserError(f"{wrong[0]} must have {len(LAYOUT[wrong[0]][0])} dimensions")
        if len(given) < 2:
            raise UserError("not predictions of use: 'prior' [layers, experts] and 'early' or 'late' needed")
        tokens = next(len(value) for name, value in given.items() if name != "prior")
        sizes = dict(zip("DLE", (tokens, *self.prior.shape), strict=True))
        for name, value in given.items():
            shape = [sizes[letter] for letter in LAYOUT[name][0]]
            if value.dtype != np.float32 or list(value.shape) != shape:
                raise UserError(f"{name} must be float32 {shape}, got {value.dtype} {list(value.shape)}")
            if not (value.min(initial=0) >= 0 and value.max(initial=0) <= 1):  # NaN fails too
                raise UserError(f"{name} holds values that are no probabilities from 0 to 1")

    @property
    def tokens(self) -> int:
        return len(next(each for each in (self.early, self.late) if each is not None))

    @property
    def horizon(self) -> int:
        """For so many layers after the running one they have more than the prior."""
        return 1 if self.early is None else len(self.prior)

    def check_trace(self, trace: RoutingTrace) -> None:
        """UserError where these predictions are about another trace."""
        wanted = (int((trace.phase == DECODE).sum()), trace.layers, trace.num_experts)
        found = (self.tokens, *self.prior.shape)
        if found != wanted:
            raise UserError(
                f"predictions of {_shape(found)} are not of this trace, which has {_shape(wanted)}"
            )
        if self.trace_digest != digest_of(trace):
            raise UserError(
                f"predictions of another trace: digest {self.trace_digest[:12]}, not {digest_of(trace)[:12]}"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes them as one .safetensors file, which appears whole or not at all."""
        tensors = {name: getattr(self, name) for name in LAYOUT if getattr(self, name) is not None}
        facts = {"format": FORMAT, "version": VERSION, "predictor": self.predictor}
        facts["trace_digest"] = self.trace_digest
        write_tensors(path, tensors, facts)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RecordedPredictions":
        """Maps a file and checks all of it. UserError names the file and what is wrong with it."""
        tensors, facts = map_tensors(path)
        found = (facts.get("format"), facts.get("version"))
        if found != (FORMAT, VERSION):
            raise UserError(
                f"{path}: format and version must be {FORMAT} 1, got {found[0]!r:.40} {found[1]!r:.40}"
            )
        unknown = sorted(set(tensors) - set(LAYOUT))
        absent = [name for name in METADATA if name not in facts]
        if unknown or absent or "prior" not in tensors:
            wrong = unknown or absent or ["prior"]
            raise UserError(f"{path}: not predictions of use: '{wrong[0]}' is unknown or missing")
        try:
            parts = tensors["prior"], tensors.get("early"), tensors.get("late")
            return cls(*parts, facts["trace_digest"], facts["predictor"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def digest_of(trace: RoutingTrace) -> str:
    """SHA-256 of the experts, phases and requests of a trace; names and sizes do not count."""
    digest = hashlib.sha256()
    for rows in trace.blocks():
        for array in (trace.experts, trace.phase, trace.request):
            digest.update(np.ascontiguousarray(array[rows.start : rows.stop]).data)
    return digest.hexdigest()


def _shape(sizes: tuple[int, ...]) -> str:
    tokens, layers, experts = sizes
    return f"{tokens} decoded tokens, {layers} layers x {experts} experts"
