"""Run a built engine for the comparison with torch; buffers are torch's on the GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from export.runtimes import Array, Runtime


def tensorrt_runtime() -> Runtime:
    """TensorRT on the first GPU, for ``COMPONENT.plan`` beside each ``COMPONENT.onnx``."""
    return Runtime("tensorrt", lambda onnx: _Engine(onnx.with_suffix(".plan")), serves=True)


class _Engine:
    def __init__(self, path: Path) -> None:
        import tensorrt as trt

        self._trt = trt
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        stream = torch.cuda.current_stream()
        tensors = {
            name: torch.from_numpy(each).contiguous().cuda() for name, each in inputs.items()
        }
        profile = self._profile({name: tuple(each.shape) for name, each in tensors.items()})
        self._context.set_optimization_profile_async(profile, stream.cuda_stream)
        for name, tensor in tensors.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = self._trt.nptype(self._engine.get_tensor_dtype(name)).__name__
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run an engine that it had built")
        stream.synchronize()
        return {name: tensors[name].cpu().numpy() for name in self._outputs}

    def _profile(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """The profile that holds these shapes."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._holds(index, name, shape) for name, shape in shapes.items()):
                return index
        raise RuntimeError(f"no profile of the engine holds {shapes}")

    def _holds(self, index: int, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, index))
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
