"""On a GPU: pinned memory, a copy stream, events; the same answers."""

from typing import Any

import pytest
import torch

from dwellmoe.offload import Engine, EngineSettings, load_with_cache
from tests.offload.workbench import cached, checkpoint, present, prompt, resident

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    "settings", [{}, {"ram_budget": "8"}, {"prefetch_budget": 2}, {"expert_budget": "100%"}]
)
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_every_tier(family, settings):
    given = EngineSettings(**{"expert_budget": "2", "prefill_buffer": 2, **settings})
    loaded: tuple[Any, Engine] = load_with_cache(str(checkpoint(family)), given, torch.float32, "cuda")
    model, engine = loaded
    with engine:
        for seed in range(3):
            ids, options = prompt(seed=seed), {"max_new_tokens": 8, "do_sample": False}
            expected = resident(family).generate(ids, **options)
            assert torch.equal(model.generate(ids.cuda(), **options).cpu(), expected)
        assert present(engine) == cached(engine)
