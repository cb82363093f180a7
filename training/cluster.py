"""A run on several machines: Ray Train starts the processes, each of them runs the pipeline.

The directory it is called from, data, base model and run directory must lie where every machine
sees them, by the same paths.
"""

import os
from typing import Any

from service.errors import TrainingError
from training.config import TrainConfig
from training.processes import on_cpu
from training.run import Run


def train_on_cluster(config: TrainConfig, workers: int) -> Run:
    """As pipeline.train in `workers` processes, one GPU each where there are any."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump(mode="json"), "directory": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=not on_cpu()),
        run_config=RunConfig(
            name="ray",
            storage_path=str(config.out.resolve()),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(f"a worker failed: {error}") from error
    return Run.open(config.out)


def _work(job: dict[str, Any]) -> None:
    from training.pipeline import train

    os.chdir(job["directory"])
    train(TrainConfig.model_validate(job["config"]))
