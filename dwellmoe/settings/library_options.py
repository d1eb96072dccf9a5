"""The remaining options of transformers' Trainer, read from its source: importing it takes seconds."""

import ast
import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any

from dwellmoe.options import COUNT, SEED, Range, Settings
from dwellmoe.settings.library_names import library_source
from dwellmoe.settings.trainer import TrainerSettings

SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1 - 1e-9)
SOME = Range(1, COUNT)
ANY = Range(0, COUNT)
RANGES = {
    "warmup_steps": ANY,
    "weight_decay": Range(0, 100),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), BELOW_ONE),
    "adam_epsilon": SHARE,
    "max_grad_norm": Range(0, 1e9),
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": Range(0, 1e6),
    "torch_empty_cache_steps": SOME,
    "eval_delay": ANY,
    "per_device_eval_batch_size": Range(1, 65_536),
    "eval_accumulation_steps": SOME,
    "save_total_limit": SOME,
    "data_seed": Range(0, SEED),
    "dataloader_num_workers": Range(0, 1024),
    "dataloader_prefetch_factor": Range(1, 65_536),
    "ddp_bucket_cap_mb": Range(1, 1e6),
    "ddp_timeout": Range(1, 1e8),
    "local_rank": Range(0, COUNT, also=(-1,)),
}
"""Option -> the numbers it takes; any other one takes all that are finite."""
FINITE = Range(-1e300, 1e300)
MAY_BE_FILES = ("deepspeed", "fsdp_config", "accelerator_config")
"""Options that take a JSON object, or the path of a file with one."""
TYPES: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str, dict)} | {
    "list[str]": list[str]
}


@functools.cache
def library_options() -> Any:
    """A dataclass of transformers' TrainingArguments less those of `TrainerSettings`; defaults are None."""
    own = {entry.name for entry in dataclasses.fields(TrainerSettings)}
    fields = [field for field in _fields(_sources()) if field[0] not in own]
    kind = dataclasses.make_dataclass("LibraryOptions", fields, bases=(Settings,))
    kind.__doc__ = "Other options of transformers' TrainingArguments."
    return kind


def _sources() -> list[ast.stmt]:
    """The statements of the two files that define the options and the names they choose from."""
    return [
        statement
        for name in ("training_args.py", "trainer_utils.py")
        for statement in library_source(name).body
    ]


def _fields(statements: list[ast.stmt]) -> Iterator[tuple[str, Any, Any]]:
    """(name, type, field) of each option that a command line can give."""
    classes = {entry.name: entry for entry in statements if isinstance(entry, ast.ClassDef)}
    for entry in classes["TrainingArguments"].body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.value, ast.Call):
            name, kinds = ast.unparse(entry.target), ast.unparse(entry.annotation).split(" | ")
            types = [TYPES[kind] for kind in (kind.partition("[str, ")[0] for kind in kinds) if kind in TYPES]
            if types:
                choices = [value for kind in kinds if kind in classes for value in _values_of(classes[kind])]
                yield name, functools.reduce(operator.or_, types), _field(name, types, choices, entry.value)


def _values_of(enumeration: ast.ClassDef) -> Iterator[str]:
    for entry in enumeration.body:
        if isinstance(entry, ast.Assign) and isinstance(entry.value, ast.Constant):
            yield str(entry.value.value)


def _field(name: str, types: list[Any], choices: list[str], call: ast.Call) -> Any:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    metadata = {"help": _help(given["metadata"]), "default": _default(given.get("default"))}
    if {int, float} & {*types}:
        metadata["range"] = RANGES.get(name, FINITE)
    if dict in types and name not in MAY_BE_FILES:
        metadata["json_only"] = True
    if choices:
        metadata["choices"] = tuple(choices)
    return dataclasses.field(default=None, metadata=metadata)


def _help(metadata: ast.expr) -> str:
    """The help text, in one line; empty where the source computes it."""
    try:
        return " ".join(ast.literal_eval(metadata)["help"].split())
    except ValueError:
        return ""


def _default(value: ast.expr | None) -> Any:
    return value.value if isinstance(value, ast.Constant) else None
