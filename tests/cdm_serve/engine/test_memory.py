"""What a larger batch takes is known before it runs, and what a container may still take."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from cdm_serve.engine import memory
from cdm_serve.engine.memory import available

MIB = 2**20


BEGIN = """
import numpy as np
from cdm_serve.engine.memory import Growth

MIB, growth = 2**20, Growth()
"""
FORESEEN = """
taken = np.ones(300 * MIB, np.uint8)
del taken  # a peak that is over before the first batch counts for nothing
for batch in (1, 2):
    assert growth.need(16) == 0 and growth.lacks(16) is None
    with growth.watch(batch):
        np.ones(batch * 40 * MIB, np.uint8)
assert 0.8 * 640 * MIB < growth.need(16) < 1.3 * 640 * MIB, growth.need(16) / MIB
assert growth.need(2) == 0
for batch in (2, 1):  # which says nothing of larger ones
    with growth.watch(batch):
        pass
assert 0.8 * 640 * MIB < growth.need(16) < 1.3 * 640 * MIB, growth.need(16) / MIB
"""
CONSTANT = """
for batch in (1, 2):
    with growth.watch(batch):
        np.ones(100 * MIB, np.uint8)
assert 50 * MIB < growth.need(64) < 300 * MIB, growth.need(64) / MIB  # of 6400, were it to grow
"""


@pytest.mark.parametrize("script", [FORESEEN, CONSTANT])
def test_a_larger_batch_is_foreseen_from_two_smaller_ones(script: str) -> None:
    """In a process of its own: that of other tests may give memory back meanwhile."""
    command = [sys.executable, "-c", BEGIN + script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_container_has_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file cache does not count: it goes when memory is wanted."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = available()
    (tmp_path / "memory.max").write_text("max\n")
    assert available() == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text(f"{500 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{450 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"active_file {MIB}\ninactive_file {200 * MIB}\n")
    assert available() == 250 * MIB
