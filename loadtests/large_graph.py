"""A model of more than 2 GB, protobuf's limit, from safetensors to served rewards.

python -m loadtests.large_graph        about 8 GB of memory and 6 GB of disk, removed afterwards
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from service.config import ServiceConfig
from service.pairs import Pair
from service.scorer import Scorer, score_offline
from training.foreign import PROBES, export_foreign

TOKENIZER = Path("runs/demo/model")


def main() -> None:
    config = LlamaConfig(
        vocab_size=300_000, hidden_size=2048, intermediate_size=4096, num_hidden_layers=1,
        num_attention_heads=16, num_key_value_heads=4, pad_token_id=0, num_labels=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=".") as name:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.save_pretrained(Path(name) / "model")
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(Path(name) / "model")
        started = time.perf_counter()
        bundle = export_foreign(Path(name) / "model", Path(name) / "bundle", uncalibrated=True)
        seconds = time.perf_counter() - started
        scorer = Scorer.open(ServiceConfig(bundle=bundle.path, device="cpu"))
        pairs = [Pair(prompt, response) for prompt, response in PROBES]
        rows = [row.ids for row in scorer.encoding.encode(pairs)]
        got = np.array([result.reward for result in score_offline(scorer, pairs)])
        scorer.close()
        with torch.no_grad():
            expected = [model(torch.tensor([row])).logits.item() for row in rows]
        print(json.dumps({
            "parameters": bundle.manifest.architecture.parameters,
            "data_bytes": bundle.manifest.files["model.onnx.data"].bytes,
            "graph_bytes": bundle.manifest.files["model.onnx"].bytes,
            "largest_distance": float(np.abs(got - expected).max()), "export_s": round(seconds, 1),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
