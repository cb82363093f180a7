"""SkyRL-Gym's own registry and environment loop, in threads as SkyRL runs it.

Arguments: samples as JSON lines. The URL is in REWARD_SERVICE_URL.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# README: SkyRL
import skyrl_gym

skyrl_gym.register("remote_reward", entry_point="reward_client.skyrl:RemoteRewardEnv")
# README: end

samples = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]


def episode(sample: dict) -> float:
    environment = skyrl_gym.make("remote_reward", env_config={}, extras={})
    environment.init([{"role": "user", "content": sample["prompt"]}])
    done = environment.step(sample["response"])
    assert done["done"] and done["observations"] == []
    return done["reward"]


with ThreadPoolExecutor(32) as threads:  # SkyRL's max_env_workers
    print(json.dumps(list(threads.map(episode, samples))))
