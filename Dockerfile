# Five images: gateway (no torch, no Triton), triton (on NVIDIA's), cpu (everything that serves
# without a GPU), export (with torch) and export-gpu (which builds TensorRT engines besides). The bases are arguments, so that a house can use its own.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.10-py3

FROM ${BASE_IMAGE} AS build
WORKDIR /work
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY cdm_serve cdm_serve
COPY distill distill
COPY export export
COPY benchmarks benchmarks
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM build AS build-gateway
RUN pip install -c constraints.txt "$(ls /wheels/*.whl)[redis,telemetry]"

FROM build AS build-cpu
RUN pip install -c constraints.txt "$(ls /wheels/*.whl)[cpu,redis,telemetry]"

FROM build AS build-export
RUN pip install -c constraints.txt "$(ls /wheels/*.whl)[export]"

FROM build-export AS build-export-gpu
RUN pip install -c constraints.txt "$(ls /wheels/*.whl)[export,tensorrt]"

FROM ${BASE_IMAGE} AS runtime
RUN useradd --uid 10001 --user-group --home-dir /work --create-home cdm \
    && install --directory --owner cdm --group cdm /models
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /work
USER 10001:10001

FROM runtime AS gateway
COPY --from=build-gateway /opt/venv /opt/venv
EXPOSE 8000
CMD ["cdm-serve"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
EXPOSE 8000
CMD ["cdm-serve"]

FROM runtime AS export
COPY --from=build-export /opt/venv /opt/venv
CMD ["cdm-export", "--help"]

FROM runtime AS export-gpu
COPY --from=build-export-gpu /opt/venv /opt/venv
CMD ["cdm-export", "--help"]

# NVIDIA's image has a Python of its own, which its python backend uses.
FROM ${TRITON_IMAGE} AS triton
COPY --from=build /work/constraints.txt /wheels /tmp/wheels/
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir \
        -c /tmp/wheels/constraints.txt "$(ls /tmp/wheels/*.whl)[cuda,tensorrt]" \
    && rm -rf /tmp/wheels
USER 1000:1000
EXPOSE 8000 8001
