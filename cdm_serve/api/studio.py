"""Makes the pictures of a plan: pixels from the model, files from a thread."""

import asyncio
import time
from concurrent.futures import Executor

from cdm_serve.api.answer import Made
from cdm_serve.api.encode import encode_image
from cdm_serve.api.plan import Plan
from cdm_serve.triton.supervisor import Supervisor


class Studio:
    """Pictures are encoded in ``executor``, off the event loop."""

    def __init__(self, supervisor: Supervisor, executor: Executor) -> None:
        self._supervisor = supervisor
        self._executor = executor

    async def make(self, plan: Plan) -> list[Made]:
        """All pictures of a plan, in the order of their seeds."""
        return await asyncio.gather(*(self._picture(plan, seed) for seed in plan.seeds))

    async def _picture(self, plan: Plan, seed: int) -> Made:
        reply = await self._supervisor.generate(
            plan.model.id, plan.prompt, seed, plan.steps, plan.width, plan.height
        )
        assert reply.image is not None
        begin = time.perf_counter()
        file = await asyncio.get_running_loop().run_in_executor(
            self._executor,
            encode_image,
            reply.image,
            plan.output_format,
            plan.compression,
            facts(plan, seed),
        )
        encode = round(1e3 * (time.perf_counter() - begin), 3)
        receipt = {
            "seed": seed,
            "steps": plan.steps,
            "size": plan.size,
            "model": plan.model.id,
            "fingerprint": plan.model.fingerprint,
            "batches": reply.report["batches"],
            "milliseconds": reply.report["milliseconds"] | {"encode": encode},
        }
        return Made(file, receipt, reply.report["tokens"])


def facts(plan: Plan, seed: int) -> dict[str, str]:
    """What the file itself says: all that makes the picture again but the prompt.

    Nothing in it depends on the moment, so that equal requests give equal bytes.
    """
    return {
        "seed": str(seed),
        "steps": str(plan.steps),
        "model": plan.model.id,
        "fingerprint": plan.model.fingerprint,
    }
