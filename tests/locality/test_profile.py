"""The profile file, and the layers a threshold picks."""

import numpy as np
import pytest

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.locality.elastic_lora import select_layers
from dwellmoe.locality.profile import read_profile, write_profile
from dwellmoe.locality.threshold import needs_profile

LAYERS = [MoeLayer(i, i + 1, "b", "r", "e", "a", (), 8, 2) for i in range(4)]
ECR = np.array([0.2, 0.5, 0.3, 0.9])


def picked(threshold):
    return [layer.index for layer in select_layers(LAYERS, ECR, threshold)]


def test_absolute_threshold_and_quantile():
    assert picked("0.4") == [0, 2]
    assert picked("q50") == [0, 2]
    assert picked("1.0") == picked("q100") == [0, 1, 2, 3]
    assert [layer.index for layer in select_layers(LAYERS[:1], ECR[:1], "q50")] == [0]


@pytest.mark.parametrize("threshold", ["q0", "q101", "qx", "nan", "-1", "0", "high"])
def test_malformed_threshold(threshold):
    with pytest.raises(UserError, match="--daft_threshold"):
        needs_profile(threshold)


def test_threshold_that_selects_nothing_says_what_there_is():
    with pytest.raises(UserError, match=r"selects no layer: the ECR .* lies in 0\.2000\.\.0\.9000"):
        picked("0.1")


def test_file_round_trip(tmp_path):
    path = tmp_path / "offline_ecr_profile.csv"
    write_profile(path, LAYERS, ECR)
    assert path.read_text().splitlines()[0] == "layer_idx,ECR"
    assert read_profile(path, LAYERS) == pytest.approx(ECR)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets write it
    assert read_profile(path, LAYERS) == pytest.approx(ECR)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,ecr\n1,0.5\n", ":1: expected the columns layer_idx,ECR"),
        ("layer_idx,ECR\n1,0.5\n2;0.5\n", ":3: expected 'layer,ECR'"),
        ("layer_idx,ECR\n1,7\n", ":2: an ECR lies in 0..1"),
        ("layer_idx,ECR\n1,0.5\n", "no ECR for layer 2"),
        ("layer_idx,ECR\n1,0.5\n1,0.6\n", ":3: layer 1 is there twice"),
        ("layer_idx,ECR\n1,nan\n", ":2: an ECR lies in 0..1"),
        ("layer_idx,ECR\n" + "9" * 5000 + ",0.5\n", ":2: expected 'layer,ECR'"),
        ("layer_idx,ECR\n1," + "9" * 200_000, "profile.csv"),
        (b"layer_idx,ECR\n1,0.5\n\xe9", "profile.csv': cannot be read as text"),
    ],
)
def test_bad_file_names_the_line(tmp_path, text, message):
    path = tmp_path / "profile.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_profile(path, LAYERS)
