"""What the OpenAPI document promises, tried by another program with requests of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = shutil.which("schemathesis", path=Path(sys.executable).parent) or shutil.which(
    "schemathesis"
)


def test_every_field_of_a_request_is_described(server):
    document = server.http.get("/openapi.json").json()
    route = document["paths"]["/v1/images/generations"]["post"]
    fields = route["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"prompt", "n", "size", "quality", "seed", "num_inference_steps", "stream"} <= set(
        fields
    )
    responses = route["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(responses)
    assert "422" not in responses  # FastAPI's own, which is never sent


def test_the_documentation_loads_nothing_from_elsewhere(server):
    page = server.http.get("/docs").text
    addresses = re.findall(r"""(?:src|href)="(.*?)\"""", page)
    assert len(addresses) >= 3
    assert all(server.http.get(address).status_code == 200 for address in addresses)


@pytest.mark.skipif(PROGRAM is None, reason="needs schemathesis: pip install schemathesis")
def test_no_crash_and_no_undocumented_answer(server, start, tmp_path):
    """All its checks but one: a model or a size that is well formed need not be served.

    The document is what a strict server takes; others take more.
    """
    server = start("--triton", server.triton_address(), "--strict")
    server.wait_ready()
    result = subprocess.run(
        [
            *(PROGRAM, "run", f"{server.url}/openapi.json"),
            *("--exclude-checks", "positive_data_acceptance"),
            *("--phases", "coverage,fuzzing", "--max-examples", "8"),
            *("--seed", "1", "--no-color", "--warnings", "off"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
    assert server.http.get("/readyz").status_code == 200
    server.picture("a fox", 1, 1)
