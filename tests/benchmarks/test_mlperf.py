import json
from pathlib import Path

import pytest

from benchmarks.cli import main


@pytest.mark.slow
def test_three_scenarios(server, tmp_path: Path, capsys) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs the extra 'mlperf'")
    out = tmp_path / "mlperf.json"
    command = ["mlperf", server.url, "--seconds", "3", "--rate", "5", "--slo", "5000"]
    assert main([*command, "--out", str(out)]) == 0
    scenarios = json.loads(out.read_text())["scenarios"]
    assert list(scenarios) == ["SingleStream", "Server", "Offline"]
    for name, result in scenarios.items():
        assert (result["Scenario"], result["failed"]) == (name, 0)
        assert float(result["50.00 percentile latency (ns)"]) > 1e6
    assert "images/s" in capsys.readouterr().out
