"""Calls a running server with clients that nobody here wrote, as their users do, and holds what they get against what lsqd says itself.

Usage: clients.py ADDRESS. Started by .ci/python, which installs the clients and starts the server.
"""

import json
import sys
import urllib.request

import numpy as np
import pyarrow as pa
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
    address = sys.argv[1].rstrip("/")
    prepare(address)
    with_triton(address)
    with_arrow(address)


if __name__ == "__main__":
    main()
