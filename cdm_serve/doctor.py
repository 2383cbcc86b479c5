"""``cdm-serve doctor``: what this machine has, what would be used, and what to run for the rest."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdm_serve.api.auth import read_keys
from cdm_serve.api.folder import check_folder
from cdm_serve.api.hook import load_hook
from cdm_serve.api.shared_limits import check_redis
from cdm_serve.api.signing import signatory_of
from cdm_serve.engine.memory import GIB, available
from cdm_serve.engine.runtimes import fit_precision, runtime_for
from cdm_serve.errors import StartError
from cdm_serve.repository import check_model, models_in, parameters_of
from cdm_serve.server import check_devices, listen
from cdm_serve.settings import Settings
from cdm_serve.tracing import trace_provider
from cdm_serve.triton.target import grpc_target
from cdm_serve.triton.wheel import PYTHON, find_wheel

# What Docker gives a container, and Triton does not get by with.
LEAST_SHARED = 64 * 2**20
FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]-[/]"}


@dataclass(frozen=True)
class Finding:
    """``good`` is None for what is not there and not needed by itself."""

    what: str
    found: str
    good: bool | None = True


def doctor(settings: Settings, console: Console) -> int:
    """Print all findings; 0 when ``cdm-serve`` with these settings would serve, else 2."""
    with console.status("looking, and reading the models' files ..."):
        findings = list(examine(settings))
    return show(findings, "serve", console)


def show(findings: list[Finding], what: str, console: Console) -> int:
    """Print findings and whether it would ``what``; 0 if so, else 2."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        table.add_row(MARKS[each.good], each.what, escape(each.found))
    console.print(table)
    wrong = [each.what for each in findings if each.good is False]
    if wrong:
        console.print(f"[red]it would not {what}[/]: see {', '.join(wrong)}")
        return 2
    console.print(f"[green]it would {what}[/]")
    return 0


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything, one after the other."""
    yield Finding("CPU", cpu())
    yield Finding("memory", memory())
    shown = list(gpus())
    yield from shown
    yield package("OpenVINO", "openvino", "'cdm-serve[cpu]'")
    yield package("ONNX Runtime", "onnxruntime", "'cdm-serve[cuda]' for a GPU")
    yield package("TensorRT", "tensorrt", "'cdm-serve[tensorrt]' for engines on a GPU")
    yield package("CuPy", "cupy", "'cdm-serve[cuda]' for a GPU")
    yield _distribution("CUDA", "cuda-toolkit")
    yield _distribution("cuDNN", "nvidia-cudnn-cu13")
    yield tried("keys", lambda: read_keys(settings) and _who(settings))
    yield from _asked_for(settings)
    if settings.devices is not None:
        yield tried("devices", lambda: _devices(settings, shown))
    yield tried("port", lambda: _port(settings))
    if settings.triton is not None:
        yield tried("Triton", lambda: _reach(settings.triton or ""))
        return
    yield tried("Triton", _bundled)
    yield _shared_memory()
    try:
        models = models_in(settings.model_repository)
    except StartError as error:
        yield Finding("models", str(error), False)
        return
    for model in models:
        yield tried(f"model {model.name}", partial(_model, model))


def _asked_for(settings: Settings) -> Iterator[Finding]:
    """What is looked at where a setting asks for it."""
    if settings.link_folder is not None:
        yield tried("links", partial(check_folder, settings.link_folder))
    if settings.on_picture is not None:
        yield tried("hook", partial(_hook, settings.on_picture))
    if settings.c2pa_certificate is not None or settings.c2pa_key is not None:
        yield tried("signing", lambda: signatory_of(settings) and settings.c2pa_certificate)
    if settings.redis is not None:
        yield tried("Redis", partial(check_redis, settings.redis))
    if settings.traces:
        yield tried("traces", _traces)
    if settings.ray:
        found = package("Ray", "ray", "'cdm-serve[cpu,ray]'")
        yield replace(found, good=bool(found.good))


def cpu() -> str:
    information = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", information)
    flags = set(re.findall(r"\w+", information.partition("flags")[2].partition("\n")[0]))
    features = [text for flag, text in FEATURES.items() if flag in flags]
    cores = len(os.sched_getaffinity(0))
    return f"{name[1] if name else os.uname().machine}, {cores} cores, {' '.join(features)}"


def memory() -> str:
    return f"{available() / GIB:.1f} GiB available"


def _shared_memory() -> Finding:
    usage = shutil.disk_usage("/dev/shm")
    if usage.free > LEAST_SHARED:
        return Finding("shared memory", f"{usage.free / GIB:.2g} GiB free in /dev/shm")
    small = usage.total <= LEAST_SHARED
    mend = "docker run --shm-size 1g" if small else "delete what is left there, see ls -l /dev/shm"
    found = f"only {usage.free / 2**20:.0f} MiB free in /dev/shm: {mend}"
    return Finding("shared memory", found, False)


def gpus() -> Iterator[Finding]:
    """As the driver tells, so also where no package for them is installed."""
    query = "--query-gpu=index,uuid,name,memory.total,driver_version,compute_cap"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        yield Finding("GPU", "none that nvidia-smi shows", None)
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for line in listed.stdout.splitlines():
        index, uuid, name, memory, driver, capability = line.split(", ")
        found = f"{name}, {memory}, driver {driver}, compute capability {capability}"
        named = [] if visible is None else [each.strip() for each in visible.split(",")]
        shown = any(each and (each == index or uuid.startswith(each)) for each in named)
        hidden = visible is not None and not shown
        yield Finding(f"GPU {index}", found + (", not in CUDA_VISIBLE_DEVICES" if hidden else ""))


def package(what: str, name: str, extra: str) -> Finding:
    try:
        module = import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of it is missing
        why = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        return Finding(what, f"not here ({why[0]}): pip install {extra}", None)
    found = str(module.__version__)
    if hasattr(module, "get_available_providers"):
        providers = module.get_available_providers()
        found += ", on " + ", ".join(each.removesuffix("ExecutionProvider") for each in providers)
    return Finding(what, found)


def _distribution(what: str, name: str) -> Finding:
    try:
        return Finding(what, f"{version(name)}, of pip")
    except PackageNotFoundError:
        return Finding(what, "not of pip, perhaps of the system", None)


def tried(what: str, find: Callable[[], object]) -> Finding:
    try:
        return Finding(what, str(find()))
    except StartError as error:
        return Finding(what, str(error), False)
    except Exception as error:  # whatever goes wrong here would go wrong at start
        return Finding(what, f"{type(error).__name__}: {error}", False)


def _who(settings: Settings) -> str:
    keyed = settings.api_keys or settings.api_key_file
    return "asked for" if keyed else f"none: whoever reaches {settings.host} may ask"


def _hook(name: str) -> str:
    load_hook(name)
    return name


def _traces() -> str:
    trace_provider().shutdown()
    return "sent as OTEL_* variables say"


def _devices(settings: Settings, shown: list[Finding]) -> str:
    """Numbers are looked for among the GPUs that are ``shown``, if there are any."""
    devices = check_devices(settings)
    names = [each.what for each in shown if each.good]
    for device in devices:
        if names and device.isdecimal() and f"GPU {device}" not in names:
            raise StartError(f"there is no GPU {device}, only {', '.join(names)}: change --devices")
    return f"a Triton on each of {', '.join(devices)}"


def _port(settings: Settings) -> str:
    listen(settings).close()
    return f"{settings.port} is free on {settings.host}"


def _reach(addresses: str) -> str:
    grpc_target(addresses)
    for address in addresses.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise StartError(f"nothing answers at {address}: {error}") from error
    return f"something listens at {addresses}; its models are its own matter"


def _bundled() -> str:
    find_wheel()
    return f"nvidia-pytriton {version('nvidia-pytriton')}, with libpython{PYTHON}"


def _model(model: Path) -> str:
    """What it would run in; all but loading it, which takes its time and memory."""
    manifest = check_model(model, full=True)
    parameters = parameters_of(model)
    runtime, precision = parameters["runtime"], parameters["precision"]
    runtime_for(manifest, runtime, precision)
    size = sum(path.stat().st_size for path in (model / "1").iterdir())
    if size > available():
        raise StartError(
            f"its files have {size / GIB:.1f} GiB, and less memory is available: end other "
            "programs, or export it with --precision fp16"
        )
    arithmetic = fit_precision(manifest.runtimes, runtime, precision)
    sizes = ", ".join(manifest.sizes)
    return f"whole, {sizes}, {manifest.precision}, {size / 2**20:.0f} MiB; {runtime} {arithmetic}"
