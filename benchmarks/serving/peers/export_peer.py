"""The student as optimum-intel exports it: ``python -m ... STUDENT FOLDER``.

With the tokenizers that OpenVINO GenAI wants beside them.
"""

import sys
from pathlib import Path

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import export_from_model

from benchmarks.serving.peers.common import load


def main(student: Path, folder: Path) -> None:
    """Write the folder."""
    pipeline = load(student)
    export_from_model(pipeline, folder, task="text-to-image", stateful=False)
    for name, component in pipeline.components.items():
        if name.startswith("tokenizer") and component is not None:
            path = folder / name / "openvino_tokenizer.xml"
            openvino.save_model(convert_tokenizer(component), path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
