import pytest

from benchmarks.export_full_size import CONFIGURATIONS, measure
from benchmarks.export_slices import COSTS, extrapolated


@pytest.mark.slow
def test_one_layer_of_sd3_medium() -> None:
    """The file holds the weights once, two bytes each, and the table of 192 x 192 positions."""
    result = measure("sd3", "fp16", {"num_layers": 1})
    assert result["layers"] == {"num_layers": 1}
    stored = 2 * (result["weights"] + 192 * 192 * 1536)
    assert stored < result["file_bytes"] < 1.01 * stored
    assert result["peak_bytes"] > result["file_bytes"]


@pytest.mark.slow
def test_one_layer_of_longcats_text_encoder() -> None:
    result = measure("longcat-text", "bf16", {"num_hidden_layers": 1})
    assert result["layers"] == {"num_hidden_layers": 1}
    assert 2 * result["weights"] < result["file_bytes"] < 2.01 * result["weights"]


def test_the_whole_is_its_layers_and_what_surrounds_them() -> None:
    """Costs that are 10 for what surrounds the layers, 3 and 5 for a layer of each kind."""
    base = dict.fromkeys(COSTS, 10 + 3 + 5)
    per_layer = {
        "num_layers": dict.fromkeys(COSTS, 3),
        "num_single_layers": dict.fromkeys(COSTS, 5),
    }
    whole = {kind: CONFIGURATIONS["longcat"][kind] for kind in per_layer}
    assert extrapolated(base, per_layer, whole) == dict.fromkeys(COSTS, 10 + 10 * 3 + 20 * 5)
