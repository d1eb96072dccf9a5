"""Models that compute a request otherwise where it shares a padded batch with a longer one."""

from torch import nn


def depends_on_padding(model: nn.Module) -> bool:
    """Whether a padded request gets other logits than the same request alone.

    So it is with the sparse attention of transformers 5.23 (DeepSeek-V3.2, GLM-5): its indexer counts padding
    among the tokens that it chooses from.
    """
    return any("Indexer" in type(module).__name__ for module in model.modules())
