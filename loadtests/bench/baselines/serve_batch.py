"""The same model behind Ray Serve's `@serve.batch`.

    python -m loadtests.bench.baselines.serve_batch BUNDLE

`PUT /batching?size=8&wait_ms=10` changes both while it runs. The engine runs in a thread, so that
the event loop goes on collecting: blocking it would be slower.
"""

import asyncio
from pathlib import Path
from typing import Any

from service.config import ServiceConfig


def build(config: ServiceConfig) -> Any:
    from fastapi import FastAPI
    from ray import serve

    from loadtests.bench.baselines.model import Model, ScoreBody

    api = FastAPI()

    @serve.deployment(name="batched", max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
    @serve.ingress(api)
    class Batched:
        def __init__(self, bundle: str) -> None:
            self.model = Model(Path(bundle))

        @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)
        async def batch(self, rows: list[list[int]]) -> list[float]:
            return await asyncio.to_thread(self.model.score, rows)

        @api.post("/score")
        async def score(self, body: ScoreBody) -> dict[str, list[float]]:
            rows = [self.model.encode(pair) for pair in body.pairs]
            return {"rewards": list(await asyncio.gather(*map(self.batch, rows)))}

        @api.put("/batching")
        async def batching(self, size: int, wait_ms: float) -> None:
            self.batch.set_max_batch_size(size)
            self.batch.set_batch_wait_timeout_s(wait_ms / 1e3)

        async def drain(self) -> None:
            pass

    return Batched.bind(str(config.bundle))


if __name__ == "__main__":
    from loadtests.bench.baselines.hosting import host

    host(build)
