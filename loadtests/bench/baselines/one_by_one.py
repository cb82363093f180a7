"""A FastAPI server that scores every request as it comes, in FastAPI's own thread pool.

    python -m loadtests.bench.baselines.one_by_one BUNDLE

Prints `ready at URL`.
"""

import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from loadtests.bench.baselines.model import Model, ScoreBody

app = FastAPI()


@app.post("/score")
def score(body: ScoreBody) -> dict[str, list[float]]:
    """A plain function: FastAPI calls it in a thread."""
    model: Model = app.state.model
    return {"rewards": model.score([model.encode(pair) for pair in body.pairs])}


if __name__ == "__main__":
    app.state.model = Model(Path(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"ready at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
