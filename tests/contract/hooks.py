"""What schemathesis does not know of the contract: lines of JSON, names of what is there, and media types that it takes for others."""

import json
import zlib

import schemathesis


@schemathesis.serializer("application/x-ndjson", "application/vnd.apache.arrow.stream")
def as_lines(ctx, value):
    if isinstance(value, (bytes, str)):
        return value
    rows = value if isinstance(value, list) else [value]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@schemathesis.hook
def before_load_schema(ctx, raw_schema):
    """It parses YAML before it validates what is said to be a string, and takes the schema of a stream of events for that of each event."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            for response in operation.get("responses", {}).values() if isinstance(operation, dict) else ():
                for media, content in response.get("content", {}).items():
                    if media in ("application/yaml", "text/event-stream"):
                        content.pop("schema", None)


def half(text):
    """Whether, of a text, which half it falls in: the same each time."""
    return zlib.crc32(repr(text).encode()) % 2 == 0


@schemathesis.hook
def map_path_parameters(ctx, path_parameters):
    """About half of the names, versions and sequences are of what is there, unless it is to be deleted as a whole."""
    path, method = ctx.operation.path, ctx.operation.method.upper()
    # Events of what is there go on for ever, and a model may be there because an earlier request made it; tests/api has them.
    if path.endswith("/{name}/events") and path_parameters and "name" in path_parameters:
        return {**path_parameters, "name": f"nobody-{path_parameters['name']}"}
    if not path_parameters or not half(path_parameters):
        return path_parameters
    if method == "DELETE" and path in ("/v1/datasets/{name}", "/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        return path_parameters
    model = "series" if path.endswith("/forecast") else "model"
    known = {"name": "table" if path.startswith("/v1/datasets") else model, "version": "1", "sequence": 1, "row": 0}
    return {name: known.get(name, value) for name, value in path_parameters.items()}


@schemathesis.hook
def map_body(ctx, body):
    """About half of the requests that name a dataset name the one that is there, with a target of its own."""
    if isinstance(body, dict) and isinstance(body.get("dataset"), str) and half(body):
        body = {**body, "dataset": "table"}
        if isinstance(body.get("target"), str):
            body["target"] = "y"
    return body
