"""Settings that cannot be together, and values that cannot be."""

import pytest

from dwellmoe.errors import UserError
from dwellmoe.locality.settings import LocalitySettings
from dwellmoe.settings.model import ModelSettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"locality_schedule": "cosine"}, "--locality_schedule cosine: choose from constant, linear"),
        ({"balance_scope": "token"}, "--balance_scope token: choose from batch, sequence, global"),
        ({"distillation_weight": -1.0}, "--distillation_weight -1.0: must be at least 0"),
        ({"target_ecr": 0.5, "consecutive_expert_loss_weight": 0.0}, "above 0 to start from"),
        ({"quality_reference": "out"}, "--quality_reference needs --quality_budget"),
        ({"quality_budget": 0.1, "locality_schedule": "linear"}, "leave --locality_schedule out"),
    ],
)
def test_a_wrong_setting_is_a_users_mistake(given, message):
    with pytest.raises(UserError, match=message):
        LocalitySettings(**given)


@pytest.mark.parametrize("key", ["/../x", "..", "a/b", "a\nb"])
def test_a_label_in_folder_names_names_no_other_folder(key):
    with pytest.raises(UserError, match="--model_key must be the name of a file"):
        ModelSettings(model_key=key)
