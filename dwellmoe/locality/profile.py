"""Measures and keeps the ECR of each layer on training data, by which elastic fine-tuning picks layers."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.files import replacing
from dwellmoe.locality.monitor import RoutingMonitor
from dwellmoe.locality.rates import ecr_per_layer
from dwellmoe.routing import RouterTap

PROFILE_NAME = "offline_ecr_profile.csv"
COLUMNS = ["layer_idx", "ECR"]


@torch.no_grad()
def measure_profile(model: nn.Module, layers: Sequence[MoeLayer], batches: Iterable[dict]) -> np.ndarray:
    """ECR of each MoE layer, float64 [L], over the batches of a collator (each with `segment_ids`)."""
    monitor = RoutingMonitor(layers)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    for batch in tqdm(batches, desc="profile", disable=None):
        inputs = {
            name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()
        }
        segments = inputs.pop("segment_ids")
        with RouterTap(model, layers, [monitor.recorder]):
            model(**inputs)
        monitor.add(segments)
    model.train(was_training)
    trace = monitor.trace()
    assert trace is not None, "no batch to measure the profile on"
    return ecr_per_layer(trace)


def write_profile(path: Path, layers: Sequence[MoeLayer], ecr_L: np.ndarray) -> None:
    """Writes `layer_idx,ECR`, a line a MoE layer, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((layer.layer_id, f"{ecr:.6f}") for layer, ecr in zip(layers, ecr_L, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def read_profile(path: Path, layers: Sequence[MoeLayer]) -> np.ndarray:
    """ECR of each of the model's MoE layers, float64 [L]. Raises UserError naming file and line."""
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except OSError as error:
        raise UserError(f"ECR profile '{path}': {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"ECR profile '{path}': cannot be read as text: {error}") from None
    if not lines or lines[0] != COLUMNS:
        raise UserError(f"{path}:1: expected the columns {','.join(COLUMNS)}")
    ecr_of: dict[int, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line:
            layer, ecr = _entry(path, number, line)
            if layer in ecr_of:
                raise UserError(f"{path}:{number}: layer {layer} is there twice")
            ecr_of[layer] = ecr
    missing = [layer.layer_id for layer in layers if layer.layer_id not in ecr_of]
    if missing:
        raise UserError(f"{path}: no ECR for layer {missing[0]}: the profile is of another model")
    return np.array([ecr_of[layer.layer_id] for layer in layers])


def _entry(path: Path, number: int, line: list[str]) -> tuple[int, float]:
    try:
        layer, ecr = int(line[0]), float(line[1])
    except (ValueError, IndexError):
        raise UserError(f"{path}:{number}: expected 'layer,ECR', found '{','.join(line)}'") from None
    if not 0 <= ecr <= 1:
        raise UserError(f"{path}:{number}: an ECR lies in 0..1, found {ecr}")
    return layer, ecr
