import pytest

from benchmarks.export_full_size import measure


@pytest.mark.slow
def test_one_layer_of_sd3_medium() -> None:
    """The file holds the weights once, two bytes each, and the table of 192 x 192 positions."""
    result = measure("sd3", "fp16", layers=1)
    assert result["layers"] == {"num_layers": 1}
    stored = 2 * (result["weights"] + 192 * 192 * 1536)
    assert stored < result["file_bytes"] < 1.01 * stored
    assert result["peak_bytes"] > result["file_bytes"]
