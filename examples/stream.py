#!/usr/bin/env python3
"""A year of hourly temperatures at Kennedy airport, forecast one hour ahead and then learnt, row by row, by a running server.

    cargo run --release                                   # in another terminal
    python3 examples/stream.py [http://127.0.0.1:8080]

The rows are those of examples/nyc_weather.csv (its source and licence: examples/README.md). Two models are fitted on the first week and
taught everything after it through `POST /v1/models/{name}/updates`. The server predicts each row before it learns from it, so the errors
in its replies are forecast errors: no row is judged by a model that has seen it. Beside them stand

    no change       the next hour is as this one: what a forecast has to beat
    refit           a fit of everything so far, made anew every 500 rows, without any learning between
    in hindsight    a fit of all rows, the judged ones included: no forecast, but what one set of coefficients could reach at best

Python's standard library is all it needs. It makes the dataset `kennedy` and the models `kennedy_online`, `kennedy_forgetful`,
`kennedy_refit` and `kennedy_hindsight`, replacing those of the same name.
"""

import argparse
import csv
import datetime
import http.client
import json
import math
import pathlib
import sys
import urllib.parse

WEEK = 7 * 24
BATCH = 500
HOUR = datetime.timedelta(hours=1)
MODELS = {"kennedy_online": 1.0, "kennedy_forgetful": 0.999}


def rows_of(path, airport="JFK"):
    """One row for each hour that has its forebears: the temperature, and what was known an hour before."""
    with open(path, encoding="utf-8", newline="") as file:
        seen = {
            datetime.datetime.fromisoformat(row["time"].replace("Z", "+00:00")): row
            for row in csv.DictReader(file)
            if row["origin"] == airport and row["temp"] and row["dewp"]
        }
    rows = []
    for time, row in seen.items():
        before = [seen.get(time - hours * HOUR) for hours in (1, 2, 3, 23, 24)]
        if None in before:
            continue
        one, two, three, later, yesterday = (float(other["temp"]) for other in before)
        angle = 2 * math.pi * int(row["hour"]) / 24
        rows.append(
            {
                "one_hour_ago": one,
                "two_hours_ago": two,
                "three_hours_ago": three,
                "yesterday": yesterday,
                "yesterday_an_hour_later": later,
                "dew_point_an_hour_ago": float(before[0]["dewp"]),
                "day_sine": math.sin(angle),
                "day_cosine": math.cos(angle),
                "half_day_sine": math.sin(2 * angle),
                "half_day_cosine": math.cos(2 * angle),
                "temperature": float(row["temp"]),
            }
        )
    return rows


class Server:
    """The calls of the contract that are needed here, over one connection."""

    def __init__(self, address):
        parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
        self.connection = http.client.HTTPConnection(parts.netloc, timeout=60)

    def call(self, method, path, body=None, kind="application/json", absent=False):
        """The reply's JSON; with `absent`, it may be that there is nothing at this address."""
        self.connection.request(method, path, body, {"Content-Type": kind, "Prefer": "wait=60"} if body else {})
        reply = self.connection.getresponse()
        text = reply.read().decode()
        if reply.status not in (200, 201, 204) and not (absent and reply.status == 404):
            sys.exit(f"{method} {path}: {reply.status} {text}")
        return json.loads(text) if text else None

    def store(self, rows, add=False):
        """Replaces the dataset, or appends to it."""
        method, path = ("POST", "/v1/datasets/kennedy/rows") if add else ("PUT", "/v1/datasets/kennedy")
        self.call(method, path, lines(rows), "application/x-ndjson")

    def fit(self, model, factor=1.0):
        asked = {"dataset": "kennedy", "target": "temperature", "online": {"forgetting_factor": factor}}
        return self.call("POST", f"/v1/models/{model}/fits", json.dumps(asked))

    def learn(self, model, rows):
        """Errors of the rows, each predicted before it is learnt from."""
        return self.call("POST", f"/v1/models/{model}/updates", lines(rows), "application/x-ndjson")["errors"]

    def errors(self, model, rows):
        """Errors of the rows, nothing learnt."""
        known = [{name: value for name, value in row.items() if name != "temperature"} for row in rows]
        found = self.call("POST", f"/v1/models/{model}/predict", json.dumps({"rows": known}))["predictions"]
        return [row["temperature"] - prediction for row, prediction in zip(rows, found)]


def lines(rows):
    """Rows as NDJSON."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def play(server, rows):
    """Plays the rows and returns the errors of each way to forecast them."""
    for model in (*MODELS, "kennedy_refit", "kennedy_hindsight"):
        server.call("DELETE", f"/v1/models/{model}", absent=True)
    server.store(rows[:WEEK])
    for model, factor in MODELS.items():
        server.fit(model, factor)
    stream = rows[WEEK:]
    errors = {"no change": [row["temperature"] - row["one_hour_ago"] for row in stream], "refit": [], **{model: [] for model in MODELS}}
    for begin in range(0, len(stream), BATCH):
        batch = stream[begin : begin + BATCH]
        server.fit("kennedy_refit")
        errors["refit"] += server.errors("kennedy_refit", batch)
        for model in MODELS:
            errors[model] += server.learn(model, batch)
        server.store(batch, add=True)
    server.fit("kennedy_hindsight")
    errors["hindsight"] = server.errors("kennedy_hindsight", stream)
    return errors


def estimates(server, model):
    return [coefficient["estimate"] for coefficient in server.call("GET", f"/v1/models/{model}")["coefficients"]]


def main():
    parser = argparse.ArgumentParser(description="Plays a year of hourly temperatures through the updates of a running server.")
    parser.add_argument("server", nargs="?", default="http://127.0.0.1:8080")
    parser.add_argument("--check", action="store_true", help="fail unless the models that learn beat the forecast of no change")
    asked = parser.parse_args()
    server = Server(asked.server)
    rows = rows_of(pathlib.Path(__file__).with_name("nyc_weather.csv"))
    errors = play(server, rows)
    names = {
        "no change": "no change",
        "refit": f"refit every {BATCH} rows",
        **{model: f"learning, forgetting factor {factor:g}" for model, factor in MODELS.items()},
        "hindsight": "in hindsight (no forecast)",
    }
    figures = {}
    print(f"{len(rows) - WEEK} hours after the first {WEEK}; errors in °F")
    print(f"{'forecast':<34}{'MAE':>7}{'RMSE':>8}{'MAE beside no change':>23}")
    for key, name in names.items():
        assert len(errors[key]) == len(rows) - WEEK and all(map(math.isfinite, errors[key]))
        mean = math.fsum(map(abs, errors[key])) / len(errors[key])
        root = math.sqrt(math.fsum(error * error for error in errors[key]) / len(errors[key]))
        figures[key] = mean, root
        beside = "" if key == "no change" else f"{100 * (mean / figures['no change'][0] - 1):+.1f} %"
        print(f"{name:<34}{mean:>7.3f}{root:>8.3f}{beside:>23}".rstrip())
    learnt, batch = estimates(server, "kennedy_online"), estimates(server, "kennedy_hindsight")
    same = len(learnt) == len(batch) and all(abs(one / other - 1) < 1e-11 for one, other in zip(learnt, batch))
    verdict = "agree" if same else "DO NOT AGREE"
    print(f"The model that forgets nothing and a fit of all {len(rows)} rows {verdict} in eleven digits of every coefficient.")
    beaten = all(figures[model][part] < figures["no change"][part] for model in MODELS for part in (0, 1))
    if asked.check and not (same and beaten):
        sys.exit("the models that learn do not beat the forecast of no change, or are not what they should be")


if __name__ == "__main__":
    main()
