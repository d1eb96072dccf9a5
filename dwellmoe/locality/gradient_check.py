"""Ends a run in which something that should be trained is not, after the first step."""

from torch import nn
from transformers import TrainerCallback

from dwellmoe.errors import UserError


class GradientCheck(TrainerCallback):
    """Raises UserError after the first step of a run if a trained tensor got no gradient in it: it would be
    saved as it began, and nothing would tell.
    """

    def on_train_begin(self, args, state, control, model: nn.Module | None = None, **kwargs):
        assert model is not None, "the Trainer gives its model"
        self._waiting = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._handles = [
            weight.register_hook(lambda _gradient, name=name: self._seen(name))
            for name, weight in self._waiting.items()
        ]

    def _seen(self, name: str) -> None:
        self._waiting.pop(name, None)

    def on_step_end(self, args, state, control, **kwargs):
        while self._handles:
            self._handles.pop().remove()
        if self._waiting:
            names = sorted(self._waiting)
            some = ", ".join(names[:4]) + (", ..." if names[4:] else "")
            raise UserError(
                f"no gradient reached {len(names)} trained tensors in the first step, so they stay as "
                f"they are: {some}: choose other --target_modules"
            )
