"""AReaL's own reward wrapper, in its process pool, around our function.

Arguments: templated prompts and responses as JSON lines. The URL is in REWARD_SERVICE_URL.
"""

import asyncio
import json
import sys
from pathlib import Path

from areal.api.reward_api import AsyncRewardWrapper

# README: AReaL
from reward_client.areal import reward_fn  # or reward_fn="reward_client.areal.reward_fn"

# README: end


async def main() -> list[float]:
    samples = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    reward = AsyncRewardWrapper(reward_fn, max_workers=2)
    return await asyncio.gather(
        *[
            reward(sample["prompt"], sample["response"], prompt_ids=[1], completion_ids=[2])
            for sample in samples
        ]
    )


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
