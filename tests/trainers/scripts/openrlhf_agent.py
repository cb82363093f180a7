"""OpenRLHF's own single-turn agent, with an engine that hands out prepared token ids.

Arguments: URLs separated by commas, tokenizer directory, samples as JSON lines.
"""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

urls, directory, path = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(directory)
samples = [json.loads(line) for line in Path(path).read_text().splitlines()]


class Engine:
    """In vLLM's place: answers a prompt's ids with the sample's own response."""

    def __init__(self, responses: dict[tuple[int, ...], list[str]]) -> None:
        self.responses = responses

    async def generate(self, prompt_ids, params, multi_modal_data=None):
        ids = tokenizer(self.responses[tuple(prompt_ids)].pop() + tokenizer.eos_token)["input_ids"]
        output = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None, text="")
        return SimpleNamespace(outputs=[output])


def templated(prompt: str) -> str:
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


async def main() -> list[dict]:
    executor = SingleTurnAgentExecutor(urls.split(","))
    responses: dict[tuple[int, ...], list[str]] = {}
    for sample in samples:
        ids = tuple(tokenizer(templated(sample["prompt"]))["input_ids"])
        responses.setdefault(ids, []).append(sample["response"])
    engine = Engine(responses)
    params = SimpleNamespace(max_tokens=64, logprobs=None)
    return await asyncio.gather(
        *[
            executor.execute(templated(s["prompt"]), "", params, 512, tokenizer, engine)
            for s in samples
        ]
    )


results = []
for output in asyncio.run(main()):
    reward = torch.tensor(output["reward"])  # as the trainer does; fails for None
    scores = torch.tensor(output["scores"])
    text = tokenizer.decode(output["observation_tokens"], skip_special_tokens=False)
    logs = {name: torch.tensor(values).tolist() for name, values in output["extra_logs"].items()}
    results.append(
        {"text": text, "reward": reward.tolist(), "scores": scores.tolist(), "logs": logs}
    )
print(json.dumps(results))
