"""The peers of the serving benchmark: a linear model of scikit-learn behind FastAPI (two workers of uvicorn) and in MLServer.

Started by benches/serving, once for each peer, with the Python that bench/run-serving has made for it. The model is fitted to the same table
as lsqd's. Each peer is set up as its own documentation does for speed: no log line a request, uvloop and httptools, a handler that is not sent
to another thread; MLServer answers in its own process, which spares it the way to another one that its default takes.

Usage: serving.py fastapi|mlserver TABLE     the table is a CSV file whose last column is the response
"""

import ctypes
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

TABLE = "LSQD_BENCH_TABLE"


def fitted(path):
    """The model."""
    import numpy as np
    from sklearn.linear_model import LinearRegression

    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return LinearRegression().fit(table[:, :-1], table[:, -1])


def fastapi():
    """What is written in an afternoon: rows are checked by pydantic, predicted, and returned."""
    import numpy as np
    from fastapi import FastAPI
    from pydantic import BaseModel

    # A worker ends with the process that has started it, however that ends.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    model = fitted(os.environ[TABLE])
    app = FastAPI()

    class Rows(BaseModel):
        data: list[list[float]]

    class Predictions(BaseModel):
        predictions: list[float]

    @app.get("/readyz")
    async def ready():
        return {}

    @app.post("/predict")
    async def predict(rows: Rows) -> Predictions:
        return Predictions(predictions=model.predict(np.array(rows.data)).tolist())

    return app


def serve_fastapi(table):
    """Two workers that share a socket."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    os.environ[TABLE] = table
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config("serving:fastapi", factory=True, workers=2, log_level="error", access_log=False)
    say(listener.getsockname()[1])
    Multiprocess(config, sockets=[listener]).run()


def serve_mlserver(table):
    """One model, over HTTP."""
    import asyncio

    import joblib
    from mlserver import MLServer, ModelSettings, Settings
    from mlserver.settings import ModelParameters

    ports = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.joblib"
        joblib.dump(fitted(table), file)
        settings = Settings(
            host="127.0.0.1", http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2], parallel_workers=0, debug=False
        )
        model = ModelSettings(
            name="served", implementation="mlserver_sklearn.SKLearnModel", parameters=ModelParameters(uri=str(file))
        )
        say(ports[0])
        asyncio.run(MLServer(settings).start([model]))


def say(port):
    """Tells where requests go, in the one line that is read of what is printed."""
    print(f"http://127.0.0.1:{port}", flush=True)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)


if __name__ == "__main__":
    {"fastapi": serve_fastapi, "mlserver": serve_mlserver}[sys.argv[1]](sys.argv[2])
