"""AsyncGRPO's own rollout worker, in the process that it spawns, with our reward sent there.

In vLLM's place there is a thread that answers `/v1/completions` from the demo's base model: vLLM
needs a GPU, and what it generates does not matter here.
Arguments: URL, the demo's run directory, sync|async.
"""

import json
import multiprocessing
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.async_grpo.async_rollout_worker import _AsyncRolloutLoop, _child_main

from reward_client.trl import RemoteReward, remote_reward_async

SAMPLES = 32


def completions_server(base: str) -> ThreadingHTTPServer:
    model = AutoModelForCausalLM.from_pretrained(base)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = torch.tensor([asked["prompt"]])
            with lock, torch.no_grad():
                ids = model.generate(prompt, do_sample=True, max_new_tokens=asked["max_tokens"])
            new = ids[0, prompt.shape[1] :].tolist()
            choice = {"token_ids": new, "logprobs": {"token_logprobs": [0.0] * len(new)}}
            content = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            """Nothing to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # closing it waits for what is being generated
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    url, demo, form = sys.argv[1:4]
    base = str(Path(demo) / "base")
    records = (Path(demo) / "held_out.jsonl").read_text().splitlines()[:8]
    prompts = [[{"role": "user", "content": json.loads(record)["prompt"]}] for record in records]
    tokenizer = AutoTokenizer.from_pretrained(base)
    # Where the text of an answer ends; TRL knows that for published templates only.
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {"content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"}},
    }
    server = completions_server(base)
    context = multiprocessing.get_context("spawn")
    samples, stop = context.Queue(), context.Event()
    settings = {
        "model_name": "demo",
        "dataset": Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        "reward_funcs": [remote_reward_async(url) if form == "async" else RemoteReward(url)],
        "processing_class": tokenizer,
        "eos_token_ids": [tokenizer.eos_token_id],
        "num_generations": 8,
        "max_inflight_tasks": 16,
        "vllm_server_url": f"http://127.0.0.1:{server.server_port}",
    }
    shared = (samples, context.Value("i", 0), stop, context.Event(), context.Value("d", 0.0))
    failed = (context.Event(), context.Queue(maxsize=1), context.Queue(maxsize=4096))
    child = context.Process(
        target=_child_main, args=(_AsyncRolloutLoop, settings, *shared, *failed), daemon=True
    )
    child.start()
    scored = [samples.get(timeout=120) for _ in range(SAMPLES)]
    child.kill()
    child.join()
    server.shutdown()
    server.server_close()
    rows = [
        {
            "prompt": sample.prompt,
            "completion": sample.completion[0]["content"],
            "reward": sample.metrics["rewards/remote_reward"],
        }
        for sample in scored
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
