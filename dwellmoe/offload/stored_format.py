"""Whether experts that are read from disk are stored in the format that `--expert_format` names."""

from pathlib import Path

from dwellmoe.errors import UserError
from dwellmoe.experts.formats import parse_format
from dwellmoe.offload.expert_weights import ExpertWeights


def check_stored_in(expert_format: str | None, model_name: str, weights: ExpertWeights) -> None:
    """Raises UserError for a format that is not the stored one; it gives the command that packs them so.

    Without a format, and with `as_stored`, they run in whatever form they are stored.
    """
    wanted = parse_format(expert_format) if expert_format else None
    if wanted is None:
        return
    for parts, formats in zip(weights.parts, weights.formats, strict=True):
        matrices = {part.name for part in parts if not part.name.endswith("_bias")}
        if any(formats.get(name) != wanted for name in matrices):
            raise _pack_first(expert_format or "", model_name)


def _pack_first(expert_format: str, model_name: str) -> UserError:
    name, _, options = expert_format.partition(":")
    folder = "-".join([Path(model_name).name, name, *options.replace("=", "").split(",")]).rstrip("-")
    return UserError(
        f"--expert_format {expert_format}: with --expert_budget experts run in the form in which they are "
        f"stored, and '{model_name}' holds another one; pack it first: `dwellmoe pack {model_name} {folder} "
        f"--format {expert_format}`, then --model_name {folder}"
    )
