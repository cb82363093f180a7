"""The real service on an engine that costs nothing: what everything but the engine costs.

    python -m loadtests.bench.null_engine BUNDLE

The replica starts as it always does, with its golden scores reproduced by the real engine; then
that engine's `run` is replaced.
"""

from typing import Any

import numpy as np

from service.app import build_app
from service.config import ServiceConfig


def build(config: ServiceConfig) -> Any:
    from service import deployment

    class NullReplica(deployment.RewardReplica.func_or_class):
        async def __init__(self, config: dict[str, object]) -> None:
            await super().__init__(config)
            self._scorer.engine.run = lambda rows, *_, **__: np.zeros(len(rows), np.float32)

    deployment.RewardReplica = deployment.RewardReplica.options(func_or_class=NullReplica)
    return build_app(config)


if __name__ == "__main__":
    from loadtests.bench.baselines.hosting import host

    host(build)
