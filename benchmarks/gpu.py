"""SD3-Medium's full size with random weights on a CUDA machine, without network: speed and memory.

``python -m benchmarks.gpu --out FOLDER``. Needs what ``cdm-serve[export]`` installs; what else is
there (onnxruntime-gpu with cupy, TensorRT) is used, and what is not is named in the result, which
is written anew after every part, so that a run that is cut short keeps what it has. ``--tiny`` goes
the same way with tiny networks, on a CPU where there is no GPU.

Without T5, as SD3-Medium is often run: its rows of the text are zeros, and cost the same.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from rich.console import Console
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

if __package__ in (None, ""):  # run as a plain file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.prompts import prompt
from benchmarks.record import write_result
from benchmarks.tally import percentiles
from distill.adapters.sd3 import Sd3Adapter

STEPS = 4
TEXT_LENGTH = 77
SEED = 0
Result = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """One size of all networks: SD3-Medium's, or one that a CPU runs in a moment."""

    transformer: dict[str, Any]
    clips: tuple[dict[str, Any], dict[str, Any]]
    vae: dict[str, Any]
    sides: tuple[int, ...]
    batches: tuple[int, ...]
    update_batch: int  # samples of one process in the recipe: 128 on 8 GPUs
    gemm_side: int
    bandwidth_bytes: int
    seconds: float  # of every measurement


FULL = Scale(
    # What is not named is diffusers' default, which is SD3-Medium's.
    transformer={
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    clips=(
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "projection_dim": 768},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
        | {"num_attention_heads": 20, "projection_dim": 1280},
    ),
    vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    sides=(1024, 512),
    batches=(1, 2, 4, 8, 16),
    update_batch=16,
    gemm_side=8192,
    bandwidth_bytes=2**32,
    seconds=2.0,
)
_TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} | {
    "num_attention_heads": 2,
    "projection_dim": 32,
}
TINY = Scale(
    transformer={
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "caption_projection_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "sample_size": 8,
    },
    clips=(_TINY_CLIP, _TINY_CLIP),
    vae={"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    sides=(64,),
    batches=(1, 2),
    update_batch=2,
    gemm_side=128,
    bandwidth_bytes=2**20,
    seconds=0.0,
)


def random_adapter(scale: Scale, device: str, dtype: torch.dtype) -> Sd3Adapter:
    """The pipeline with random weights, made where it will run."""
    torch.manual_seed(SEED)
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f"{each}</w>" for each in symbols), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        pad_token="<|endoftext|>",
        model_max_length=TEXT_LENGTH,
    )
    ids = {"vocab_size": 49408, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    with torch.device(device):
        encoders = [
            CLIPTextModelWithProjection(CLIPTextConfig(**config, **ids)) for config in scale.clips
        ]
        transformer = SD3Transformer2DModel(in_channels=16, out_channels=16, **scale.transformer)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **scale.vae,
        )
    for network in (*encoders, transformer, vae):
        network.to(dtype).eval().requires_grad_(False)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return Sd3Adapter(pipeline)


class Eager:
    """The stages by torch, as ``diffusers`` runs them."""

    def __init__(self, scale: Scale, device: str, dtype: torch.dtype) -> None:
        self.adapter = random_adapter(scale, device, dtype)
        self.transformer: Any = self.adapter.transformer
        self._device, self._dtype = device, dtype
        self._condition = self.text(1)

    def compile(self) -> None:
        """``torch.compile``; where there is no GPU, without a compiler of machine code."""
        backend = "inductor" if self._device == "cuda" else "eager"
        self.transformer = torch.compile(self.transformer, backend=backend)
        vae = self.adapter.pipeline.vae
        vae.decode = torch.compile(vae.decode, backend=backend)

    @torch.inference_mode()
    def text(self, batch: int) -> Any:
        """Different prompts."""
        return self.adapter.encode([prompt(number) for number in range(batch)])

    @torch.inference_mode()
    def step(self, batch: int, side: int) -> Any:
        """One execution of the transformer."""
        sigma = torch.ones(batch, device=self._device, dtype=self._dtype)
        return self._velocity(self._noise(batch, side), sigma, self._condition.expand(batch))

    @torch.inference_mode()
    def decode(self, batch: int, side: int) -> Any:
        """Latents to pixels on the host."""
        images = self.adapter.decode(self._noise(batch, side)).float()
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    @torch.inference_mode()
    def picture(self, batch: int, side: int) -> Any:
        """All of it."""
        condition = self.text(batch)
        latents = self._noise(batch, side)
        grid = self.adapter.sigmas(STEPS, side, side)
        for sigma, following in pairwise(grid):
            rows = torch.full((batch,), sigma, device=self._device, dtype=self._dtype)
            latents = latents + (following - sigma) * self._velocity(latents, rows, condition)
        images = self.adapter.decode(latents).float()
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _velocity(self, x: torch.Tensor, sigma: torch.Tensor, condition: Any) -> torch.Tensor:
        return self.adapter.velocity(self.transformer, x, sigma, condition)

    def _noise(self, batch: int, side: int) -> torch.Tensor:
        shape = (batch, *self.adapter.latent_shape(side, side))
        return torch.randn(shape, device=self._device, dtype=self._dtype)


class Bench:
    """The parts, and the result that they fill."""

    def __init__(self, scale: Scale, device: str) -> None:
        self.scale, self.device = scale, device
        self.parts: dict[str, Callable[[], Result]] = {
            "limits": self.limits,
            "bf16": lambda: self.eager(torch.bfloat16),
            "fp16": lambda: self.eager(torch.float16),
            "compile": lambda: self.eager(torch.float16, compiled=True),
            "onnxruntime": lambda: self.engine("onnxruntime"),
            "tensorrt": lambda: self.engine("tensorrt"),
            "update": self.update,
        }

    def limits(self) -> Result:
        """Rate of a large product, memory bandwidth, and the operations and weights of stages."""
        rates = {}
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            side = self.scale.gemm_side
            x, w = torch.randn(2, side, side, device=self.device, dtype=dtype)
            spent = self.timed(partial(torch.matmul, x, w))["milliseconds"] / 1e3
            rates[str(dtype)] = 2 * side**3 / spent
        array = torch.ones(self.scale.bandwidth_bytes // 4, device=self.device)
        spent = self.timed(array.sum)["milliseconds"] / 1e3
        eager = Eager(self.scale, self.device, torch.float16)
        runs: dict[str, Callable[[], Any]] = {"text": partial(eager.text, 1)}
        for side in self.scale.sides:
            runs[f"step {side}"] = partial(eager.step, 1, side)
            runs[f"decode {side}"] = partial(eager.decode, 1, side)
        flops = {}
        for name, run in runs.items():
            # As plain products: the counter does not know every attention kernel.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run()
            flops[name] = counter.get_total_flops()
        return {
            "flops_per_second": rates,
            "bytes_per_second": self.scale.bandwidth_bytes / spent,
            "flops_at_batch_1": flops,
            "transformer_weights": sum(w.numel() for w in eager.transformer.parameters()),
        }

    def eager(self, dtype: torch.dtype, *, compiled: bool = False) -> Result:
        """Latency and throughput of the stages and of pictures, by size and batch."""
        stages = Eager(self.scale, self.device, dtype)
        if compiled:
            stages.compile()
        points = []
        for side in self.scale.sides:
            for batch in self.scale.batches:
                runs = {
                    "text": partial(stages.text, batch),
                    "step": partial(stages.step, batch, side),
                    "decode": partial(stages.decode, batch, side),
                    "picture": partial(stages.picture, batch, side),
                }
                for stage, run in runs.items():
                    point = {"stage": stage, "side": side, "batch": batch}
                    points.append(point | self.attempt(partial(self.timed, run)))
        return {"dtype": str(dtype), "points": points}

    def engine(self, name: str) -> Result:
        """Our scheduler on this runtime, from graphs that are exported on the spot."""
        from benchmarks.loops import closed_loop
        from cdm_serve.engine.costs import measure
        from cdm_serve.engine.manifest import read_manifest
        from cdm_serve.engine.pipeline import Pipeline
        from cdm_serve.engine.scheduler import Scheduler

        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            runtime = self.runtime(name)
            self.export(Path(folder), tensorrt=name == "tensorrt")
            exported = time.perf_counter() - begin
            pipeline = Pipeline(read_manifest(Path(folder)), runtime)
        costs = measure(pipeline, max(self.scale.batches), 10 * self.scale.seconds)
        scheduler = Scheduler(pipeline, costs, cache_bytes=2**26)
        loads = []
        for side in self.scale.sides:
            for clients in (1, 16):
                seconds = max(0.5, 10 * self.scale.seconds)
                tally = closed_loop(scheduler, f"{side}x{side}", [STEPS] * clients, seconds)
                loads.append({"side": side, "clients": clients} | tally.to_json())
        scheduler.close()
        return {"export_seconds": exported, "costs": costs.to_json(), "loads": loads}

    def runtime(self, name: str) -> Any:
        """Asked for before the export, so that what is missing is known at once."""
        if name == "onnxruntime":
            from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime

            return OnnxRuntime(self.device)
        from cdm_serve.engine.runtimes.tensorrt import TensorRt

        return TensorRt()

    def export(self, folder: Path, *, tensorrt: bool) -> None:
        """The three graphs, tokenizers and manifest, without the comparison with torch."""
        from export.components import graph
        from export.graphs import write_onnx
        from export.manifest import manifest, write_manifest
        from export.plan import Plan, tokenizers
        from export.precision import PRECISIONS
        from export.profiles import profiles
        from export.request import COMPONENTS
        from export.sizes import Size
        from export.student import Student
        from export.tensorrt import Options, build_engine, check_available, stamp
        from export.tokenizers import write_tokenizers
        from export.verify import Verification

        precision = PRECISIONS["fp16" if self.device == "cuda" else "fp32"]
        adapter = random_adapter(self.scale, "cpu", precision.dtype)
        sizes = tuple(Size(side, side) for side in self.scale.sides)
        student = Student(
            Path("random"), "sd3-medium-random", adapter, STEPS, sizes[0], "0" * 64, False
        )
        plan = Plan(student.name, sizes, precision, max(self.scale.batches), COMPONENTS)
        write_tokenizers(tokenizers(student, plan), folder)
        for component in COMPONENTS:
            path = folder / f"{component}.onnx"
            write_onnx(graph(component, student.architecture, precision), path)
        engines = None
        if tensorrt:
            gpu, options, shapes = check_available(), Options(), profiles(student, plan)
            for component, each in shapes.items():
                onnx, engine = folder / f"{component}.onnx", folder / f"{component}.plan"
                build_engine(onnx, engine, each, options, lambda *_: None)
            engines = stamp(folder, shapes, options, gpu)
        write_manifest(manifest(student, plan, folder, Verification((), ()), engines), folder)

    def update(self) -> Result:
        """One CDM update of one of the recipe's eight processes; in more parts until it fits."""
        from distill.recipe import read_recipe

        path = Path(__file__).parents[1] / "distill/recipes/sd3-medium.toml"
        side = self.scale.sides[0]
        recipe = read_recipe(path, [f"batch={self.scale.update_batch}"])
        recipe = replace(recipe, height=side, width=side)
        parts, attempts = 1, []
        while parts <= self.scale.update_batch:
            runtime = replace(recipe.runtime, device=self.device, accumulate=parts)
            found = self.attempt(partial(self.updates, replace(recipe, runtime=runtime)))
            attempts.append({"accumulate": parts} | found)
            if "absent" not in found:
                break
            parts *= 2
        return {"side": side, "batch": self.scale.update_batch, "attempts": attempts}

    def updates(self, recipe: Any) -> Result:
        """Seconds of each of some updates, the first of which also warms up; peak memory."""
        from distill.parallel import Processes
        from distill.prompts import PromptStream
        from distill.trainer import Trainer

        adapter = random_adapter(self.scale, self.device, torch.bfloat16)
        prompts = [prompt(number) for number in range(8)]
        stream = PromptStream(adapter, prompts, recipe.seed, len(prompts), self.device)
        null = stream.encode([""])
        trainer = Trainer(adapter, recipe, stream, null, Processes(self.device))
        self.reset_peak()
        seconds = []
        for _ in range(4 if self.scale is FULL else 2):
            begin = time.perf_counter()
            trainer.update()
            self.synchronize()
            seconds.append(round(time.perf_counter() - begin, 4))
        return {"seconds": seconds, "peak_bytes": self.peak_bytes()}

    def attempt(self, run: Callable[[], Result]) -> Result:
        """What it gives, or why it could not; in either case nothing is left on the GPU."""
        try:
            found = run()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found = {"absent": f"{type(error).__name__}: {lines[0]}"}
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return found

    def timed(self, run: Callable[[], Any]) -> Result:
        """Milliseconds of one run, of at least three after two that warm up; peak memory."""
        for _ in range(2):
            run()
        self.reset_peak()
        spent: list[float] = []
        end = time.perf_counter() + self.scale.seconds
        while len(spent) < 3 or time.perf_counter() < end:
            self.synchronize()
            begin = time.perf_counter()
            run()
            self.synchronize()
            spent.append(1e3 * (time.perf_counter() - begin))
        peak = self.peak_bytes()
        return {"milliseconds": median(spent), **percentiles(spent), "peak_bytes": peak}

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """Of the GPU's memory."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def main(argv: list[str] | None = None) -> int:
    """Run the parts; 2 where there is no GPU and ``--tiny`` was not given."""
    names = list(Bench(TINY, "cpu").parts)
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for gpu.json")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on a CPU if need be")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    arguments = parser.parse_args(argv)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.tiny:
        print("benchmarks.gpu: error: torch sees no GPU here; --tiny needs none", file=sys.stderr)
        return 2
    bench = Bench(TINY if arguments.tiny else FULL, device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    result: Result = {"device": name, "tiny": arguments.tiny, "parts": {}}
    console = Console(stderr=True)
    for part in arguments.only:
        begin = time.perf_counter()
        with console.status(part):
            found = bench.attempt(bench.parts[part])
        found["took_seconds"] = round(time.perf_counter() - begin, 1)
        result["parts"][part] = found
        said = found.get("absent", "done")
        console.print(f"{part}: {said}, {found['took_seconds']} s", highlight=False)
        write_result(arguments.out / "gpu.json", result, ["onnxruntime-gpu", "cupy", "tensorrt"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
