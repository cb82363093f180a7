"""verifiers' own scoring of traces with our function plugged in by its configuration.

Arguments: samples as JSON lines. The URL is in REWARD_SERVICE_URL.
"""

import asyncio
import json
import sys
import tomllib
from pathlib import Path

from verifiers.v1.configs.task import TaskConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.task import Task, TaskData
from verifiers.v1.trace import Trace
from verifiers.v1.types import AssistantMessage, UserMessage

samples = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
settings = tomllib.loads("""
# README: verifiers
[env.taskset.task.rewards]
remote_reward = {fn = "reward_client.verifiers:remote_reward", weight = 1.0}
# README: end
""")
config = TaskConfig.model_validate(settings["env"]["taskset"]["task"])


async def scored(sample: dict) -> float:
    task = Task(TaskData(prompt=sample["prompt"]), config)
    nodes = [
        MessageNode(message=UserMessage(content=sample["prompt"])),
        MessageNode(message=AssistantMessage(content=sample["response"]), parent=0, sampled=True),
    ]
    # The task and the agent of a trace matter to what records it, not to scoring.
    trace = Trace.model_construct(
        nodes=nodes, calls=[], rewards={}, metrics={}, errors=[], root_reply=None
    )
    await task.score(trace)
    return trace.reward


async def main() -> list[float]:
    return await asyncio.gather(*[scored(sample) for sample in samples])


print(json.dumps(asyncio.run(main())))
