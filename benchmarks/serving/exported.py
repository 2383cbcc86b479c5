"""An exported model opened as Triton's process opens it, without Triton."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.errors import BenchError
from cdm_serve.engine.manifest import Manifest, read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import runtime_for
from cdm_serve.repository import model_folders


@dataclass(frozen=True)
class Exported:
    """The folder of a model in a repository, and the ``parameters`` of its ``config.pbtxt``."""

    folder: Path
    parameters: dict[str, str]

    @property
    def manifest(self) -> Manifest:
        """What was exported."""
        return read_manifest(self.folder / "1")

    @property
    def max_batch(self) -> int:
        """The most pictures that share one step."""
        return int(self.parameters["max_batch"])

    @property
    def cache_bytes(self) -> int:
        """For prompt embeddings."""
        return int(float(self.parameters["prompt_cache_megabytes"]) * 2**20)

    @property
    def warm_up_seconds(self) -> float:
        """For each graph and size."""
        return float(self.parameters["warm_up_seconds"])

    def pipeline(self) -> Pipeline:
        """Its graphs in the runtime that the configuration names."""
        manifest, parameters = self.manifest, self.parameters
        runtime = runtime_for(manifest, parameters["runtime"], parameters["precision"])
        return Pipeline(manifest, runtime)


def find_export(repository: Path, model: str | None) -> Exported:
    """A model of a repository, the first where none is named.

    Raises:
        BenchError: there is none of this name, or it makes nothing of a prompt alone.
    """
    folders = {folder.name: folder for folder in model_folders(repository)}
    folders = {name: path for name, path in folders.items() if (path / "1/export.json").is_file()}
    if not folders or model not in (None, *folders):
        raise BenchError(
            f"{repository} holds no exported model {model or ''}: "
            f"run `cdm-export STUDENT --to onnx --out {repository}`, or name another --repository"
        )
    folder = folders[model] if model else next(iter(folders.values()))
    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), config)
    found = Exported(folder, {name: each.string_value for name, each in config.parameters.items()})
    if found.manifest.needs_picture:
        raise BenchError(f"{folder.name} edits pictures, and only prompts are measured: --model")
    return found
