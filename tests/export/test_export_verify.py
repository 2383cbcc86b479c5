import shutil
from pathlib import Path

import pytest
from pipelines import tiny_sd3
from rich.console import Console

from export.errors import VerificationError
from export.exporter import finish
from export.repository import staged
from export.sizes import Size
from export.student import Student, load_student
from export.verify import verify

SIZES = (Size(64, 64), Size(72, 56))


def test_every_output_is_compared_at_every_batch_and_size(exported: Path, student: Student) -> None:
    verification = verify(student, exported / "1", SIZES)
    assert not verification.failures
    assert {(c.output, c.batch, c.size) for c in verification.components} == {
        *((output, b, None) for output in ("prompt_embeds", "pooled") for b in (1, 3)),
        *((o, b, str(s)) for o in ("velocity", "image") for b in (1, 3) for s in SIZES),
    }
    assert [picture.size for picture in verification.pictures] == ["64x64", "72x56"]


@pytest.fixture
def impostor(tmp_path: Path) -> Student:
    """A student of the same shapes and other weights."""
    return load_student(tiny_sd3(tmp_path / "impostor", seed=1))


def test_another_students_weights_are_noticed_everywhere(exported: Path, impostor: Student) -> None:
    impostor.adapter.max_sequence_length = 0
    verification = verify(impostor, exported / "1", SIZES)
    assert len(verification.failures) == len(verification.components) + 2


def test_a_failed_verification_replaces_nothing(
    exported: Path, impostor: Student, tmp_path: Path
) -> None:
    impostor.adapter.max_sequence_length = 0
    repository = tmp_path / "model_repository"
    shutil.copytree(exported, repository / "tiny")
    with (
        pytest.raises(VerificationError, match="nothing was replaced; the first: text_encoder"),
        staged(repository, "tiny") as folder,
    ):
        shutil.copytree(exported / "1", folder / "1")
        finish(impostor, "tiny", SIZES, folder, Console(quiet=True))
    assert [path.name for path in repository.iterdir()] == ["tiny"]
    for path in exported.rglob("*.*"):
        copy = repository / "tiny" / path.relative_to(exported)
        assert copy.read_bytes() == path.read_bytes()
