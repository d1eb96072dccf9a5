"""Adapters with numbers of their own, and their base."""

import json

import pytest
import torch

from dwellmoe.base_model import BASE_FILE, base_model
from dwellmoe.cli.main import run
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_model
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.settings.model import ModelSettings


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory):
    """Writes an adapter of a checkpoint whose LoRA adds something, into a folder that it gives."""

    def make(checkpoint, targets=("gate",), extra=(), layers=slice(None), seed=0):
        model = load_model(ModelSettings(model_name=str(checkpoint)))
        shape = LoraShape(rank=3, targets=tuple(targets), extra=tuple(extra))
        model = add_elastic_lora(model, find_moe_layers(model)[layers], shape)
        draw = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        (folder / BASE_FILE).write_text(json.dumps(base_model(str(checkpoint))._asdict()))
        return folder

    return make


@pytest.fixture(scope="session")
def router_adapter(make_adapter, tiny_checkpoint):
    """LoRA on every router."""
    return make_adapter(tiny_checkpoint)


@pytest.fixture(scope="session")
def router_file(router_adapter, tmp_path_factory):
    """Its routers in a file of their own."""
    path = tmp_path_factory.mktemp("routers") / "tuned.safetensors"
    run(["export", "router", "--adapter", str(router_adapter), "--out", str(path)])
    return path


@pytest.fixture(scope="session")
def attention_adapter(make_adapter, tiny_checkpoint):
    """Routers trained in full beside LoRA on attention."""
    return make_adapter(tiny_checkpoint, ["attention"], ["gate"])


@pytest.fixture(scope="session")
def whole_adapter(make_adapter, tiny_checkpoint):
    """LoRA on routers, attention and experts."""
    return make_adapter(tiny_checkpoint, ["auto"])


@pytest.fixture(scope="session")
def merged_weights(tiny_checkpoint, tmp_path_factory):
    """What PEFT makes of an adapter: tensors of the merged model by their names in the checkpoint."""
    from safetensors.torch import load_file

    from dwellmoe.loading import load_adapters

    def weights(adapter, checkpoint=tiny_checkpoint):
        model = load_model(ModelSettings(model_name=str(checkpoint)))
        folder = tmp_path_factory.mktemp("merged")
        load_adapters(model, {"default": str(adapter)}).merge_and_unload().save_pretrained(folder)
        return load_file(folder / "model.safetensors")

    return weights
