"""Rows learnt a second, beside River's BayesianLinearRegression: the same rows, one after the other, on one core.

Started by bench/run-online, which builds the other half (benches/online.rs, a process that learns what it is told to) and installs River.
Both learn dense rows of a linear model with noise, held in memory in the form that each takes: floats here, dictionaries there. River's
learn_one is told the row and no more; lsqd also answers each row with its a-priori error and its leverage. The two take turns, so that a
noisy machine is noisy for both, and medians are told.

Usage: online.py BINARY [predictors...]     10 50 200; LSQD_BENCH_ROUNDS (5) changes the rounds.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np
import river
from river.linear_model import BayesianLinearRegression

SEED = 1795
ROUNDS = int(os.environ.get("LSQD_BENCH_ROUNDS", "5"))
GOALS = {10: 50, 50: 15, 200: 13}
BARE_GOAL = 0.8
BLOCK_GOAL = 5
SECONDS = 0.5


class Lsqd:
    """The process that learns."""

    def __init__(self, binary):
        self.process = subprocess.Popen([binary, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def river_rate(rows, responses):
    """Rows a second of learn_one, for about half a second."""
    model = BayesianLinearRegression()
    for row, response in zip(rows[:50], responses[:50]):
        model.learn_one(row, response)
    learnt, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        for row, response in zip(rows, responses):
            model.learn_one(row, response)
        learnt += len(rows)
    return learnt / (time.perf_counter() - begun)


def problem(predictors, rows=1_000):
    random = np.random.default_rng(SEED)
    design = random.uniform(-1.0, 1.0, (rows, predictors))
    response = design @ random.uniform(-1.0, 1.0, predictors) + random.uniform(-1.0, 1.0, rows)
    return [dict(enumerate(row)) for row in design.tolist()], response.tolist()


def judged(ratio, goal):
    return f"{ratio:7.1f} x  {'meets' if ratio >= goal else 'MISSES'} the goal of {goal} x"


def main():
    lsqd = Lsqd(sys.argv[1])
    wanted = [int(value) for value in sys.argv[2:]] or list(GOALS)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    print(f"{model}; one core; medians of {ROUNDS} rounds in turns; Python {platform.python_version()}, River {river.__version__}\n")
    for predictors in wanted:
        rows, responses = problem(predictors)
        rates = {}
        for _ in range(ROUNDS):
            for name, rate in lsqd.ask(predictors=predictors).items():
                rates.setdefault(name, []).append(rate)
            rates.setdefault("River", []).append(river_rate(rows, responses))
        rates = {name: statistics.median(each) for name, each in rates.items()}
        peer, bare, single = rates["River"], rates["bare Givens sweep"], rates["row by row"]
        print(f"p = {predictors}, rows a second")
        for name, rate in rates.items():
            print(f"  {name:<24} {rate:>12,.0f}")
        print(f"  row by row to River                {judged(single / peer, GOALS.get(predictors, 1))}")
        print(f"  row by row to the bare sweep       {judged(single / bare, BARE_GOAL)}")
        print(f"  blocks to row by row               {judged(rates['blocks of 1,000'] / single, BLOCK_GOAL)}", flush=True)
    lsqd.end()


if __name__ == "__main__":
    main()
