"""What is kept in ``benchmarks/results``."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_every_result_is_named_by_a_document() -> None:
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")]
    said = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    kept = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert kept
    orphans = [path.name for path in kept if str(path.relative_to(ROOT)) not in said]
    assert not orphans
