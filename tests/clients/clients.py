"""Calls a running server with clients that nobody here wrote, as their users do, and holds what they get against what lsqd says itself.

Usage: clients.py ADDRESS GRPC-ADDRESS. Started by .ci/python, which installs the clients and starts the server.
"""

import asyncio
import importlib
import json
import logging
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import httpx
import numpy as np
import pyarrow as pa
import requests
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

TABLE = """x,region,y
1,north,1.5
2,south,3.25
3,north,2.5
4,south,6
5,north,5
6,south,7.75
"""


def call(address, method, path, body=None, media="application/json"):
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": media, "prefer": "wait=60"}, method=method)
    with urllib.request.urlopen(request) as reply:
        return json.loads(reply.read() or b"null")


def prepare(address):
    """A model of two numbers and one with a category, and what they answer."""
    random = np.random.default_rng(1805)
    plane = random.standard_normal((50, 2))
    rows = "".join(f"{a!r},{b!r},{float(3 + 2 * a - b + 0.1 * random.standard_normal())!r}\n" for a, b in plane.tolist())
    call(address, "PUT", "/v1/datasets/clients-plane", ("a,b,y\n" + rows).encode(), "text/csv")
    call(address, "POST", "/v1/models/clients-plane/fits", {"dataset": "clients-plane", "target": "y"})
    call(address, "PUT", "/v1/datasets/clients-mixed", TABLE.encode(), "text/csv")
    call(address, "POST", "/v1/models/clients-mixed/fits", {"dataset": "clients-mixed", "target": "y"})


def equal(what, found, expected):
    assert np.array_equal(np.asarray(found), np.asarray(expected)), f"{what}: {found} is not {expected}"


def refused(what, word, work):
    try:
        work()
    except InferenceServerException as error:
        assert word in error.message(), f"{what}: the message does not say {word!r}: {error.message()}"
        return
    raise AssertionError(f"{what} was not refused")


def tensor(name, values, datatype, binary=True):
    found = triton.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values, binary_data=binary)
    return found


def with_triton(address):
    """tritonclient.http: health, metadata, tensors in JSON and in binary, both ways, compressed, several outputs, errors."""
    client = triton.InferenceServerClient(address.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("clients-plane") and client.is_model_ready("clients-plane", "1")
    assert not client.is_model_ready("clients-none")
    assert client.get_server_metadata()["name"] == "lsqd"
    metadata = client.get_model_metadata("clients-plane")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 2]}], metadata

    rows = np.random.default_rng(7).standard_normal((64, 2))
    question = {"columns": ["a", "b"], "data": rows.tolist(), "interval": {"kind": "prediction", "level": 0.9}}
    own = call(address, "POST", "/v1/models/clients-plane/predict", question)
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("predict", "lower", "upper", "leverage")]
            reply = client.infer(
                "clients-plane",
                [tensor("input", rows, "FP64", binary_in)],
                outputs=outputs,
                request_id="42",
                parameters={"interval": "prediction", "level": 0.9},
            )
            what = f"triton, binary in {binary_in}, out {binary_out}"
            equal(what, reply.as_numpy("predict"), own["predictions"])
            equal(what, reply.as_numpy("lower"), own["lower"])
            equal(what, reply.as_numpy("upper"), own["upper"])
            equal(what, reply.as_numpy("leverage"), own["leverage"])
            assert reply.get_response()["id"] == "42"
    equal("triton, no outputs named", client.infer("clients-plane", [tensor("input", rows, "FP64")]).as_numpy("predict"), own["predictions"])
    single = rows.astype(np.float32)
    expected = call(address, "POST", "/v1/models/clients-plane/predict", {"columns": ["a", "b"], "data": single.astype(float).tolist()})
    equal("triton, FP32", client.infer("clients-plane", [tensor("input", single, "FP32")]).as_numpy("predict"), expected["predictions"])
    for algorithm in ("gzip", "deflate"):
        reply = client.infer(
            "clients-plane",
            [tensor("input", rows, "FP64")],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        equal(f"triton, {algorithm}", reply.as_numpy("predict"), own["predictions"])

    x, region = np.array([[2.5], [7.0]]), np.array([["south"], ["north"]], dtype=object)
    expected = call(address, "POST", "/v1/models/clients-mixed/predict", {"rows": [{"x": 2.5, "region": "south"}, {"x": 7, "region": "north"}]})
    for binary in (True, False):
        reply = client.infer("clients-mixed", [tensor("x", x, "FP64", binary), tensor("region", region, "BYTES", binary)])
        equal("triton, a category", reply.as_numpy("predict"), expected["predictions"])

    refused("an unknown model", "no model", lambda: client.infer("clients-none", [tensor("input", rows, "FP64")]))
    refused("three columns", "shape", lambda: client.infer("clients-plane", [tensor("input", np.zeros((2, 3)), "FP64")]))
    refused("an unknown output", "output", lambda: client.infer("clients-plane", [tensor("input", rows, "FP64")], outputs=[triton.InferRequestedOutput("score")]))
    refused("an unseen category", "region", lambda: client.infer("clients-mixed", [tensor("x", x, "FP64"), tensor("region", np.array([["east"], ["north"]], dtype=object), "BYTES")]))
    missing = np.array([[np.nan, 1.0]])
    refused("a missing value in binary", "missing", lambda: client.infer("clients-plane", [tensor("input", missing, "FP64")]))
    refused("a bare NaN in JSON", "NaN", lambda: client.infer("clients-plane", [tensor("input", missing, "FP64", binary=False)]))
    client.close()
    print("tritonclient.http: as lsqd says itself")


def with_triton_grpc(address, grpc):
    """tritonclient.grpc: health, metadata, the list of models, tensors both ways, packed, several outputs, errors."""
    # Not above: kserve brings another file of the same messages, and a process takes one.
    import tritonclient.grpc as triton_grpc

    def called(name, values, datatype):
        found = triton_grpc.InferInput(name, list(values.shape), datatype)
        found.set_data_from_numpy(values)
        return found

    client = triton_grpc.InferenceServerClient(grpc)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("clients-plane") and client.is_model_ready("clients-plane", "1")
    assert not client.is_model_ready("clients-none")
    assert client.get_server_metadata().name == "lsqd"
    metadata = client.get_model_metadata("clients-plane", as_json=True)
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP64", "shape": ["-1", "2"]}], metadata
    names = [model.name for model in client.get_model_repository_index().models]
    assert names == ["clients-mixed", "clients-plane"], names

    rows = np.random.default_rng(7).standard_normal((64, 2))
    question = {"columns": ["a", "b"], "data": rows.tolist(), "interval": {"kind": "confidence", "level": 0.95}}
    own = call(address, "POST", "/v1/models/clients-plane/predict", question)
    outputs = [triton_grpc.InferRequestedOutput(name) for name in ("predict", "lower", "upper", "leverage")]
    for algorithm in (None, "gzip", "deflate"):
        reply = client.infer(
            "clients-plane",
            [called("input", rows, "FP64")],
            outputs=outputs,
            request_id="42",
            parameters={"interval": "confidence"},
            compression_algorithm=algorithm,
        )
        what = f"triton grpc, packed by {algorithm}"
        equal(what, reply.as_numpy("predict"), own["predictions"])
        equal(what, reply.as_numpy("lower"), own["lower"])
        equal(what, reply.as_numpy("upper"), own["upper"])
        equal(what, reply.as_numpy("leverage"), own["leverage"])
        assert reply.get_response().id == "42"
    single = rows.astype(np.float32)
    expected = call(address, "POST", "/v1/models/clients-plane/predict", {"columns": ["a", "b"], "data": single.astype(float).tolist()})
    equal("triton grpc, FP32", client.infer("clients-plane", [called("input", single, "FP32")], model_version="1").as_numpy("predict"), expected["predictions"])
    x, region = np.array([[2.5], [7.0]]), np.array([["south"], ["north"]], dtype=object)
    expected = call(address, "POST", "/v1/models/clients-mixed/predict", {"rows": [{"x": 2.5, "region": "south"}, {"x": 7, "region": "north"}]})
    reply = client.infer("clients-mixed", [called("x", x, "FP64"), called("region", region, "BYTES")])
    equal("triton grpc, a category", reply.as_numpy("predict"), expected["predictions"])

    refused("an unknown model", "no model", lambda: client.infer("clients-none", [called("input", rows, "FP64")]))
    refused("three columns", "shape", lambda: client.infer("clients-plane", [called("input", np.zeros((2, 3)), "FP64")]))
    refused("an unknown output", "output", lambda: client.infer("clients-plane", [called("input", rows, "FP64")], outputs=[triton_grpc.InferRequestedOutput("score")]))
    refused("an unseen category", "region", lambda: client.infer("clients-mixed", [called("x", x, "FP64"), called("region", np.array([["east"], ["north"]], dtype=object), "BYTES")]))
    refused("a missing value", "missing", lambda: client.infer("clients-plane", [called("input", np.array([[np.nan, 1.0]]), "FP64")]))
    # A tensor that lies, as only its own message can: the shape is said anew after the bytes are there.
    lying = called("input", rows, "FP64")
    lying.set_shape([2**40, 2])
    refused("2^40 rows", "shape", lambda: client.infer("clients-plane", [lying]))
    lying.set_shape([2**62, 2])
    refused("a shape that overflows", "shape", lambda: client.infer("clients-plane", [lying]))
    refused("a call that is not there", "no such method", lambda: client.get_model_config("clients-plane"))
    client.close()
    print("tritonclient.grpc: as lsqd says itself")


async def kserve_asks(address, grpc):
    import kserve

    rows = np.random.default_rng(11).standard_normal((8, 2))
    own = call(address, "POST", "/v1/models/clients-plane/predict", {"columns": ["a", "b"], "data": rows.tolist()})["predictions"]

    def asked(values, binary):
        tensor = kserve.InferInput("input", list(values.shape), "FP64")
        tensor.set_data_from_numpy(values, binary_data=binary)
        return kserve.InferRequest(model_name="clients-plane", infer_inputs=[tensor])

    rest = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=1))
    assert await rest.is_server_ready(address) and await rest.is_server_live(address) and await rest.is_model_ready(address, "clients-plane")
    for binary in (True, False):
        reply = await rest.infer(address, asked(rows, binary), model_name="clients-plane")
        equal(f"kserve, binary {binary}", reply.outputs[0].as_numpy(), own)
    try:
        await rest.infer(address, asked(np.zeros((2, 3)), True), model_name="clients-plane")
        raise AssertionError("kserve: three columns were not refused")
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 400 and "shape" in error.response.json()["error"], error
    await rest.close()
    # Its first protocol is that of TensorFlow Serving.
    rest = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1", retries=1))
    reply = await rest.infer(address, {"instances": rows.tolist()}, model_name="clients-plane")
    equal("kserve, protocol v1", reply["predictions"], own)
    await rest.close()

    client = kserve.InferenceGRPCClient(grpc)
    assert await client.is_server_ready() and await client.is_server_live() and await client.is_model_ready("clients-plane")
    for binary in (True, False):
        reply = await client.infer(asked(rows, binary))
        equal(f"kserve grpc, binary {binary}", reply.outputs[0].as_numpy(), own)
    logging.disable()
    try:
        await client.infer(asked(np.zeros((2, 3)), True))
        raise AssertionError("kserve grpc: three columns were not refused")
    except Exception as error:
        assert error.code().name == "INVALID_ARGUMENT" and "shape" in error.details(), error
    logging.disable(logging.NOTSET)
    await client.close()


def with_kserve(address, grpc):
    """kserve: both of its clients, both of its protocols over HTTP."""
    asyncio.run(kserve_asks(address, grpc))
    print("kserve: as lsqd says itself", flush=True)


def apart(work, *arguments):
    """Does something in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, work.__name__


def with_requests(address):
    """What the scoring client of MLflow and callers of TensorFlow Serving send, and how they read what comes back."""
    rows = [{"x": 2.5, "region": "south"}, {"x": 7, "region": "north"}]
    own = call(address, "POST", "/v1/models/clients-mixed/predict", {"rows": rows})["predictions"]
    assert requests.get(address + "/ping", timeout=10).status_code == 200
    assert requests.get(address + "/health", timeout=10).status_code == 200
    assert requests.get(address + "/version", timeout=10).text[0].isdigit()
    url = address + "/v1/models/clients-mixed/invocations"
    split = {"columns": ["x", "region"], "index": [0, 1], "data": [[2.5, "south"], [7, "north"]]}
    for body in ({"dataframe_split": split}, {"dataframe_records": rows}, {"inputs": {"x": [2.5, 7], "region": ["south", "north"]}}):
        reply = requests.post(url, data=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=10)
        assert reply.status_code == 200, reply.text
        equal("mlflow", reply.json()["predictions"], own)
    reply = requests.post(url, data="x,region\n2.5,south\n7,north\n", headers={"Content-Type": "text/csv"}, timeout=10)
    equal("mlflow, CSV", reply.json()["predictions"], own)
    # There are two models, and no default.
    assert requests.post(address + "/invocations", json={"dataframe_records": rows}, timeout=10).status_code == 404

    url = address + "/v1/models/clients-mixed:predict"
    reply = requests.post(url, data=json.dumps({"signature_name": "serving_default", "instances": rows}), timeout=10)
    equal("tensorflow, rows", reply.json()["predictions"], own)
    reply = requests.post(url, json={"inputs": {"x": [[2.5], [7]], "region": [["south"], ["north"]]}}, timeout=10)
    equal("tensorflow, columns", reply.json()["outputs"], own)
    reply = requests.post(address + "/v1/models/clients-mixed/versions/1:predict", json={"instances": [{"x": 1}]}, timeout=10)
    assert reply.status_code == 422 and "region" in reply.json()["error"], reply.text
    print("requests, as callers of MLflow and TensorFlow Serving: as lsqd says itself")


def generated(folder):
    """The client that a generator makes of the contract, without a word of complaint but for formats that it does not know."""
    contract = pathlib.Path(__file__).parents[2] / "openapi.yaml"
    known = {"text/csv": "application/octet-stream", "application/yaml": "text/plain"}
    binary = ("application/x-ndjson", "application/vnd.apache.arrow.stream", "application/vnd.sqlite3")
    known |= {name: "application/octet-stream" for name in binary}
    (folder / "config.json").write_text(json.dumps({"post_hooks": [], "content_type_overrides": known}))
    arguments = ["generate", "--path", contract, "--output-path", folder / "lsqd_client", "--meta", "none"]
    command = [sys.executable, "-m", "openapi_python_client", *arguments, "--config", folder / "config.json", "--fail-on-warning"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    return importlib.import_module("lsqd_client")


def with_generated(address):
    """A client that openapi-python-client makes of the contract: fits, predictions, an update, forecasts, a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        client = generated(pathlib.Path(folder)).Client(base_url=address)
        api = lambda name: importlib.import_module(f"lsqd_client.api.{name}")
        models = importlib.import_module("lsqd_client.models")
        fit = models.Fit.from_dict({"dataset": "clients-plane", "target": "y"})
        version = api("fits.create_fit").sync(name="clients-generated", client=client, body=fit, prefer="wait=60")
        assert version.version == 1 and version.model == "clients-generated", version
        rows = [{"a": 0.5, "b": -1.0}, {"a": 2.0, "b": 3.0}]
        own = call(address, "POST", "/v1/models/clients-generated/predict", {"rows": rows})
        question = models.QuestionType0.from_dict({"rows": rows})
        answer = api("predictions.predict").sync(name="clients-generated", client=client, body=question)
        equal("generated", answer.predictions, own["predictions"])
        learnt = api("updates.learn").sync(name="clients-generated", client=client, body=models.RowsType0.from_dict({"rows": [{"a": 1.0, "b": 1.0, "y": 4.0}]}))
        assert learnt.accepted == 1 and learnt.sequence == 1, learnt
        lag = models.ValuesOfRowsBefore(column="y", as_="lag", lags=[1])
        fit = models.Fit(dataset="clients-plane", target="y", features=[lag])
        api("fits.create_fit").sync(name="clients-series", client=client, body=fit, prefer="wait=60")
        own = call(address, "POST", "/v1/models/clients-series/forecast", {"steps": 3})
        ahead = api("predictions.forecast").sync(name="clients-series", client=client, body=models.ForecastQuestion.from_dict({"steps": 3}))
        equal("generated, forecasts", ahead.predictions, own["predictions"])
        refusal = api("predictions.predict").sync(name="clients-none", client=client, body=question)
        assert refusal.code == models.Code.MODEL_NOT_FOUND, refusal
    print("openapi-python-client: as lsqd says itself")


def arrow(address, path, table):
    """Sends a table as an Arrow stream; what comes back as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        # Several batches, as a client that reads a large file sends them.
        writer.write_table(table, max_chunksize=7)
    media = "application/vnd.apache.arrow.stream"
    request = urllib.request.Request(address + path, sink.getvalue().to_pybytes(), {"content-type": media}, method="POST")
    with urllib.request.urlopen(request) as reply:
        return reply.headers["content-type"], reply.read()


def with_arrow(address):
    """pyarrow: rows in and answers out as Arrow streams, dictionaries and whole numbers among them; rows to learn."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((20, 2))
    table = pa.table({"b": rows[:, 1], "a": pa.array(rows[:, 0], pa.float64())})
    own = call(address, "POST", "/v1/models/clients-plane/predict", {"columns": ["a", "b"], "data": rows.tolist()})
    media, body = arrow(address, "/v1/models/clients-plane/predict?interval=prediction", table)
    assert media == "application/vnd.apache.arrow.stream", media
    reply = pa.ipc.open_stream(body).read_all()
    equal("arrow", reply["prediction"].to_numpy(), own["predictions"])
    equal("arrow", reply["leverage"].to_numpy(), own["leverage"])
    assert reply.column_names == ["prediction", "lower", "upper", "leverage", "extrapolates"], reply.column_names
    assert reply.schema.metadata[b"lsqd-version-sequence"] == b"1-0", reply.schema.metadata

    mixed = {"x": pa.array([2, 7, 3], pa.int16()), "region": pa.array(["south", "north", "south"]).dictionary_encode()}
    own = call(address, "POST", "/v1/models/clients-mixed/predict", {"rows": [{"x": x, "region": region} for x, region in zip([2, 7, 3], ["south", "north", "south"])]})
    _, body = arrow(address, "/v1/models/clients-mixed/predict", pa.table(mixed))
    equal("arrow, a dictionary", pa.ipc.open_stream(body).read_all()["prediction"].to_numpy(), own["predictions"])
    mixed["y"] = pa.array([3.5, 7.5, 4.25], pa.float32())
    _, body = arrow(address, "/v1/models/clients-mixed/updates", pa.table(mixed))
    assert json.loads(body)["accepted"] == 3, body
    print("pyarrow: as lsqd says itself")


def main():
    address, grpc = sys.argv[1].rstrip("/"), sys.argv[2]
    prepare(address)
    with_triton(address)
    with_triton_grpc(address, grpc)
    apart(with_kserve, address, grpc)
    with_requests(address)
    with_arrow(address)
    with_generated(address)


if __name__ == "__main__":
    main()
