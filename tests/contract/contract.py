"""Lets schemathesis make requests of openapi.yaml, right ones and wrong ones, and holds each reply against what the contract says of it.

Usage: contract.py ADDRESS [EXAMPLES]. Started by .ci/python; EXAMPLES (25 unless given) are made of each operation, in each of two ways.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent


def call(address, method, path, body, media, key=None):
    headers = {"content-type": media} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(address + path, body.encode(), headers, method=method)
    return urllib.request.urlopen(request).read()


def main(address, examples="25"):
    # Keys will be made of the contract too, and from the first on requests need one.
    key = json.loads(call(address, "POST", "/v1/keys", json.dumps({"scopes": ["admin"]}), "application/json"))["token"]
    # Something for requests to meet; hooks.py has about half of them name it.
    table = "x,region,y\n" + "".join(f"{row % 7},{'north' if row % 3 else 'south'},{row % 7 + row % 3 * 0.25}\n" for row in range(40))
    call(address, "PUT", "/v1/datasets/table", table, "text/csv", key)
    for _ in range(2):
        call(address, "POST", "/v1/models/model/fits", json.dumps({"dataset": "table", "target": "y"}), "application/json", key)
    lag = {"column": "y", "as": "lag", "lags": [1, 7]}
    call(address, "POST", "/v1/models/series/fits", json.dumps({"dataset": "table", "target": "y", "features": [lag]}), "application/json", key)
    command = [
        sys.executable, "-B", "-m", "schemathesis.cli",
        "--config-file", str(HERE / "schemathesis.toml"),
        "run", str(HERE.parent.parent / "openapi.yaml"),
        "--url", address,
        "--header", f"Authorization: Bearer {key}",
        "--checks", "all",
        "--max-examples", examples,
        "--phases", "examples,coverage,fuzzing",
        "--request-timeout", "30",
        "--continue-on-failure",
        "--seed", "1809",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    sys.exit(subprocess.run(command, cwd=os.environ.get("TMPDIR", "/tmp"), env=environment, check=False).returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
