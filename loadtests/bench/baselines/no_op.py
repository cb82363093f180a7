"""A Serve application that does nothing: what the ingress and Serve themselves cost.

python -m loadtests.bench.baselines.no_op BUNDLE
"""

from typing import Any

from service.config import ServiceConfig


def build(config: ServiceConfig) -> Any:
    from fastapi import FastAPI, Request, Response
    from ray import serve

    api = FastAPI()

    @serve.deployment(name="no_op", max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
    @serve.ingress(api)
    class NoOp:
        @api.post("/score")
        async def score(self, request: Request) -> Response:
            await request.body()
            return Response(b'{"rewards":[0.0]}', media_type="application/json")

        async def drain(self) -> None:
            pass

    return NoOp.bind()


if __name__ == "__main__":
    from loadtests.bench.baselines.hosting import host

    host(build)
