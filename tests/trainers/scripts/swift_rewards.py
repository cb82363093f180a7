"""ms-swift's own scoring of completions with our plugin, twice: each time a new event loop.

Arguments: samples as JSON lines. The URL is in REWARD_SERVICE_URL.
"""

import json
import sys
from pathlib import Path

import torch
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.utils import import_external_file

samples = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
import_external_file(str(Path(__file__).parent / "swift_plugin.py"))  # as --external_plugins does
reward = orms["remote_reward"](args=None)
rows = [
    GRPOSample(
        messages=[
            {"role": "user", "content": sample["prompt"]},
            {"role": "assistant", "content": sample["response"]},
        ]
    )
    for sample in samples
]
steps = [
    compute_rewards_per_func(rows, [reward], None, torch.device("cpu"))[:, 0].tolist()
    for _ in range(2)
]
assert steps[0] == steps[1]
print(json.dumps(steps[0]))
