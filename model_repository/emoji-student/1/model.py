"""What Triton loads for every exported model; all of it lives in cdm_serve.engine."""

from cdm_serve.engine.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
