#!/usr/bin/env python3
"""Sunspots and carbon dioxide, forecast by an autoregression of a running server, by statsmodels' AutoReg, and by the last value.

    cargo run --release                                          # in another terminal
    python3 -m pip install numpy pandas statsmodels              # what it is held against, and where the series are from
    python3 examples/forecast.py [http://127.0.0.1:8080]

The series come with statsmodels, so that nothing is fetched: the yearly sunspot numbers from 1700 to 2008 (`sunspots`, from the National
Geophysical Data Center), and the carbon dioxide above Mauna Loa by the month, 1958 to 2001 (`co2`, by Keeling and Whorf; public domain;
weeks are averaged, and months without one interpolated). The last fifth of each is held out. From each of its rows the next twelve are
forecast, by a model that was fitted before it and has learnt everything up to there: the server by `updates` of one row, AutoReg by a fit of
all rows so far. What is printed is √ of the mean squared error at some steps, how many of the observations lie within the limits of 90 %,
and the time that all of it took.

It makes the datasets `sunspots` and `co2` and models of those names, replacing them.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.parse
import warnings

try:
    import numpy as np
    from statsmodels.datasets import co2, sunspots
    from statsmodels.tsa.ar_model import AutoReg
except ImportError:
    sys.exit("this example holds the server against statsmodels: python3 -m pip install numpy pandas statsmodels")

STEPS = 12
SHOWN = (1, 3, 6, 12)
LEVEL = 0.9


def all_series():
    """Name, values, lags."""
    yearly = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float)
    monthly = co2.load_pandas().data["co2"].resample("MS").mean().interpolate().to_numpy(float)
    return [("sunspots", yearly, [1, 2, 3, 9]), ("co2", monthly, [1, 2, 12, 13, 24])]


class Server:
    """The calls of the contract that are needed here, over one connection."""

    def __init__(self, address):
        parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
        self.connection = http.client.HTTPConnection(parts.netloc, timeout=60)

    def call(self, method, path, body=None, kind="application/json"):
        body = json.dumps(body) if kind == "application/json" and body is not None else body
        self.connection.request(method, path, body, {"Content-Type": kind, "Prefer": "wait=60"} if body else {})
        reply = self.connection.getresponse()
        text = reply.read().decode()
        if reply.status not in (200, 201):
            sys.exit(f"{method} {path}: {reply.status} {text}")
        return json.loads(text)


def by_server(server, name, values, lags, begin):
    """Forecasts and limits from each row from `begin` on, each made before the row is learnt."""
    server.call("PUT", f"/v1/datasets/{name}", "y\n" + "".join(f"{value!r}\n" for value in values[:begin].tolist()), "text/csv")
    asked = {"dataset": name, "target": "y", "features": [{"column": "y", "as": "lag", "lags": lags}]}
    asked["validation"] = {"kind": "time", "folds": 4, "steps": STEPS}
    version = server.call("POST", f"/v1/models/{name}/fits", asked)
    found = []
    for row in range(begin, len(values)):
        reply = server.call("POST", f"/v1/models/{name}/forecast", {"steps": STEPS, "interval": {"level": LEVEL}})
        found.append((reply["predictions"], reply["lower"], reply["upper"]))
        server.call("POST", f"/v1/models/{name}/updates", {"rows": [{"y": float(values[row])}]})
    return np.array(found), version["validation"]["steps"]


def by_statsmodels(values, lags, begin):
    found = []
    for row in range(begin, len(values)):
        prediction = AutoReg(values[:row], lags).fit().get_prediction(row, row + STEPS - 1)
        limits = np.asarray(prediction.conf_int(1 - LEVEL))
        found.append((prediction.predicted_mean, limits[:, 0], limits[:, 1]))
    return np.array(found)


def by_last_value(values, begin):
    last = np.array([np.full(STEPS, values[row - 1]) for row in range(begin, len(values))])
    none = np.full_like(last, np.nan)
    return np.stack([last, none, none], axis=1)


def judged(found, values, begin):
    """Root mean squared error by step, and the share of observations within the limits."""
    errors, within, judged = np.zeros(STEPS), 0, 0
    for step in range(STEPS):
        observed = values[begin + step :]
        mean, lower, upper = found[: len(observed), :, step].T
        errors[step] = np.sqrt(np.mean((observed - mean) ** 2))
        within += np.sum((lower <= observed) & (observed <= upper))
        judged += len(observed)
    return errors, within / judged if np.isfinite(found[:, 1:]).all() else None


def main():
    parser = argparse.ArgumentParser(description="Forecasts two series by a running server, by statsmodels and by the last value.")
    parser.add_argument("server", nargs="?", default="http://127.0.0.1:8080")
    parser.add_argument("--check", action="store_true", help="fail unless the server's forecasts are AutoReg's and beat the last value")
    asked = parser.parse_args()
    server = Server(asked.server)
    warnings.simplefilter("ignore")
    good = True
    for name, values, lags in all_series():
        begin = len(values) * 4 // 5
        print(f"{name}: {len(values)} rows, the last {len(values) - begin} held out; lags {', '.join(map(str, lags))}")
        print(f"{'forecast':<24}" + "".join(f"{f'{step} ahead':>11}" for step in SHOWN) + f"{'within 90 %':>14}{'seconds':>10}")
        figures, all_found = {}, {}
        for way in ("last value", "statsmodels AutoReg", "lsqd"):
            begun = time.monotonic()
            if way == "lsqd":
                found, steps = by_server(server, name, values, lags, begin)
            else:
                found = by_last_value(values, begin) if way == "last value" else by_statsmodels(values, lags, begin)
            seconds = time.monotonic() - begun
            errors, within = judged(found, values, begin)
            figures[way], all_found[way] = errors, found
            covered = "" if within is None else f"{100 * within:.1f} %"
            print(f"{way:<24}" + "".join(f"{errors[step - 1]:>11.3f}" for step in SHOWN) + f"{covered:>14}{seconds:>10.2f}")
        shown = ", ".join(f"{steps[step - 1]['rmse']:.3f} ({steps[step - 1]['last_value']['rmse']:.3f})" for step in SHOWN)
        print(f"what the fit said of itself before, at the same steps (and of the last value): {shown}")
        difference = np.max(np.abs(all_found["lsqd"][:, 0] - all_found["statsmodels AutoReg"][:, 0])) / np.std(values)
        print(f"the forecasts of the server and of AutoReg differ by {difference:.0e} of the series' standard deviation at the most\n")
        good = good and difference < 1e-8 and all(figures["lsqd"][step - 1] < figures["last value"][step - 1] for step in SHOWN)
    if asked.check and not good:
        sys.exit("the server's forecasts are not those of AutoReg, or do not beat the last value")


if __name__ == "__main__":
    main()
