"""Every option has a help text that can be printed."""

import pytest

from config import SETTINGS
from dwellmoe.evaluation.settings import EvaluationSettings
from dwellmoe.settings_parser import settings_parser


@pytest.mark.parametrize("kind", [*SETTINGS, EvaluationSettings], ids=lambda kind: kind.__name__)
def test_help_can_be_printed(kind, capsys):
    with pytest.raises(SystemExit) as left:
        settings_parser((kind,), "about").parse(["--help"])
    assert left.value.code == 0
    assert "--help" in capsys.readouterr().out
