"""Fits of data in memory, beside those of scikit-learn and statsmodels: how long they take, how much memory, and whether they agree.

Started by bench/run, which builds the other half (benches/fitting.rs, a process that fits what it is told to) and installs the peers. Both
get the same floats: a Gaussian design with offsets, a linear response, noise, one seed. The peers take turns with lsqd within a round, so
that a noisy machine is noisy for all, and medians are told. Times are of the fit alone, from data in memory to coefficients; for the peers
with the layout that NumPy makes by itself, row by row.

Usage: fitting.py BINARY [comparison...]     without comparisons, all of them; LSQD_BENCH_ROUNDS (5), LSQD_BENCH_SHRINK (1: rows are
divided by it, for a trial) and LSQD_BENCH_FOLDER (where the data lies for a moment) change the setting.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import scipy
import sklearn
import statsmodels
import statsmodels.api as sm
import threadpoolctl
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNetCV, HuberRegressor, LinearRegression, RidgeCV

SEED = 1805
ROUNDS = int(os.environ.get("LSQD_BENCH_ROUNDS", "5"))
SHRINK = int(os.environ.get("LSQD_BENCH_SHRINK", "1"))
MEMORY_GOAL = 32.0
PRODUCT_GOAL = 2.5
# Seconds below which a turn is two runs, and the second one counts: processor and memory have to come back from what was idle.
SHORT = 1.0
PENALTIES = [float(value) for value in np.logspace(-3, 6, 100)]
# The duality gap, relative to ||y||^2, at which a point of an elastic net's path ends: lsqd's on a fold. Its final path ends at 1e-14.
GAP = 1e-10


class Lsqd:
    """The process that fits."""

    def __init__(self, binary, threads=None):
        environment = dict(os.environ)
        if threads is not None:
            environment["RAYON_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen([binary, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, what, **more):
        self.process.stdin.write(json.dumps({"what": what, **more}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{what}: {answer['error']}")
        return answer

    def load(self, design, response):
        """Hands data over, through a file that is gone when it has been read."""
        with tempfile.NamedTemporaryFile(dir=os.environ.get("LSQD_BENCH_FOLDER")) as file:
            for column in (*design.T, response):
                file.write(np.ascontiguousarray(column, dtype="<f8").tobytes())
            file.flush()
            self.ask("load", path=file.name, rows=design.shape[0], columns=design.shape[1])

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def problem(rows, columns, sparse=False, wild=False):
    """A design and a response. Every other coefficient is zero if `sparse`; one response in twenty is far off if `wild`."""
    random = np.random.default_rng(SEED)
    design = random.standard_normal((rows // SHRINK, columns))
    design += np.linspace(1.0, 10.0, columns)
    slopes = random.standard_normal(columns)
    if sparse:
        slopes[::2] = 0.0
    response = design @ slopes + 3.0 + random.standard_normal(design.shape[0])
    if wild:
        response[::20] += 50.0
    return design, response


def seconds_of(work):
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def rest():
    """Threads of linear algebra libraries go on spinning for a moment after their work, in the way of whoever comes next."""
    time.sleep(0.1)


def digits(found, expected):
    """Decimal digits in which the worst of some coefficients agrees."""
    found, expected = np.asarray(found), np.asarray(expected)
    worst = np.max(np.abs(found - expected) / np.abs(expected))
    return 16.0 if worst == 0.0 else -np.log10(worst)


def tell(text):
    print(text, flush=True)


def against(goal, ratio):
    return f"{ratio:6.1f} x  {'meets' if ratio >= goal else 'MISSES'} the goal of {goal} x"


def take_turns(lsqd, request, peers):
    """Rounds of lsqd and of each peer; a peer comes with the rounds it takes part in. Medians, and what was found last."""
    times, found = {"lsqd": []}, {}
    for turn in range(ROUNDS):
        rest()
        found["lsqd"] = lsqd.ask(**request)
        if found["lsqd"]["seconds"] < SHORT:
            found["lsqd"] = lsqd.ask(**request)
        times["lsqd"].append(found["lsqd"]["seconds"])
        for name, rounds, work in peers:
            if turn < rounds:
                rest()
                spent, found[name] = seconds_of(work)
                if spent < SHORT:
                    spent, found[name] = seconds_of(work)
                times.setdefault(name, []).append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}, found


def shape(design):
    return f"{design.shape[0]:,} x {design.shape[1]:,}"


def coefficients(estimator):
    return np.concatenate([[estimator.intercept_], estimator.coef_])


def least_squares(lsqd, rows, columns, goal, exact):
    design, response = problem(rows, columns)
    lsqd.load(design, response)
    rest()
    flops = max(lsqd.ask("peak")["flops"] for _ in range(3))
    slow = design.size > 2e7
    peers = [("LinearRegression", 3 if slow else ROUNDS, lambda: LinearRegression().fit(design, response))]
    times, found = take_turns(lsqd, {"what": "least squares"}, peers)
    flops = max(flops, lsqd.ask("peak")["flops"])
    own = found["lsqd"]
    tell(f"least squares, {shape(design)}")
    line("lsqd", times["lsqd"], f"solver auto took {own['solver']}")
    line("LinearRegression", times["LinearRegression"], against(goal, times["LinearRegression"] / times["lsqd"]))
    product = design.shape[0] * columns**2 / flops
    ratio = times["lsqd"] / product
    judged = f", {'within' if ratio <= PRODUCT_GOAL else 'PAST'} the goal of {PRODUCT_GOAL} x" if exact else ""
    line("half a Gram product", product, f"n p^2 flops at the measured {flops / 1e9:.0f} Gflop/s: lsqd takes {ratio:.2f} x{judged}")
    if own["memory"] is not None:
        judged = f", {'within' if own['memory'] < MEMORY_GOAL else 'PAST'} the goal of {MEMORY_GOAL:.0f} MiB" if exact else ""
        tell(f"  more memory at the peak than before the fit: {own['memory']:.1f} MiB{judged}")
    tell(f"  digits shared with LinearRegression: {digits(own['coefficients'], coefficients(found['LinearRegression'])):.1f}")
    if exact:
        truth = lsqd.ask("least squares", solver="exact")
        shared = digits(own["coefficients"], truth["coefficients"])
        judged = "meets" if shared >= 13 else "MISSES"
        tell(f"  digits shared with the exact solver ({truth['seconds']:.1f} s): {shared:.1f}, {judged} the goal of 13")
    tell("")


def line(name, seconds, rest=""):
    tell(f"  {name:<22} {seconds:>9.4f} s  {rest}".rstrip())


def ridge(lsqd):
    design, response = problem(100_000, 100)
    lsqd.load(design, response)
    peers = [("RidgeCV", 3, lambda: RidgeCV(alphas=PENALTIES).fit(design, response))]
    times, found = take_turns(lsqd, {"what": "ridge path", "penalties": PENALTIES}, peers)
    tell(f"ridge, the best of {len(PENALTIES)} penalties by leave-one-out, and its fit, {shape(design)}")
    line("lsqd", times["lsqd"])
    line("RidgeCV", times["RidgeCV"], against(20, times["RidgeCV"] / times["lsqd"]))
    own, peer = found["lsqd"], found["RidgeCV"]
    same = "the same penalty" if np.isclose(own["penalty"], peer.alpha_) else f"other penalties, {own['penalty']:g} and {peer.alpha_:g}"
    tell(f"  {same}; digits shared: {digits(own['coefficients'], coefficients(peer)):.1f}\n")


def elastic(lsqd):
    design, response = problem(100_000, 100, sparse=True)
    lsqd.load(design, response)

    def peer():
        return ElasticNetCV(l1_ratio=0.5, alphas=100, eps=1e-3, cv=5, tol=GAP, max_iter=100_000, n_jobs=os.cpu_count()).fit(design, response)

    request = {"what": "elastic net", "l1_ratio": 0.5, "points": 100, "smallest": 1e-3, "folds": 5}
    times, found = take_turns(lsqd, request, [("ElasticNetCV", 3, peer)])
    own, other = found["lsqd"], found["ElasticNetCV"]
    tell(f"elastic net, the best of 100 penalties in 5 folds, {shape(design)}")
    line("lsqd", times["lsqd"], f"paths of folds to a duality gap of {GAP:g} ||y||^2/n, the last one to 1e-14")
    line("ElasticNetCV", times["ElasticNetCV"], against(5, times["ElasticNetCV"] / times["lsqd"]) + f"; all paths to {GAP:g}")
    same = np.isclose(own["penalty"], other.alpha_)
    tell(f"  {'the same penalty' if same else 'other penalties, from other folds'}: {own['penalty']:.6g} and {other.alpha_:.6g}")
    if same:
        kept = other.coef_ != 0
        tell(f"  digits shared: {digits(np.array(own['slopes'])[kept], other.coef_[kept]):.1f}")
    tell("")


def robust(lsqd):
    design, response = problem(1_000_000, 20, wild=True)
    lsqd.load(design, response)
    # The column of ones that statsmodels wants is made before the clock starts.
    with_ones = sm.add_constant(design, has_constant="add")
    peers = [
        ("HuberRegressor", 2, lambda: HuberRegressor(epsilon=1.345, alpha=0.0, max_iter=1000).fit(design, response)),
        ("RLM", 2, lambda: sm.RLM(response, with_ones, M=sm.robust.norms.HuberT()).fit()),
    ]
    times, found = take_turns(lsqd, {"what": "robust"}, peers)
    own = found["lsqd"]
    tell(f"Huber's estimate, {shape(design)}, one response in twenty far off")
    line("lsqd", times["lsqd"], f"{own['rounds']} rounds, to 1e-10 of the scale")
    line("HuberRegressor", times["HuberRegressor"], against(10, times["HuberRegressor"] / times["lsqd"]) + "; to 1e-5, with a scale of its own")
    line("RLM", times["RLM"], against(10, times["RLM"] / times["lsqd"]) + "; to 1e-8")
    tell(f"  digits shared with RLM: {digits([own['intercept'], *own['slopes']], found['RLM'].params):.1f}\n")


def growth(lsqd, single):
    """Seconds of lsqd alone as rows and cores grow."""
    tell("least squares of lsqd alone: growth with the rows, and with the cores")
    for columns in (20, 100):
        design, response = problem(1_000_000, columns)
        for process in (lsqd, single):
            process.load(design, response)
        for rows in (100_000, 300_000, 1_000_000):
            rows //= SHRINK
            # In turns, as everything else.
            spent = {"one": [], "all": []}
            for _ in range(ROUNDS):
                for name, process in (("one", single), ("all", lsqd)):
                    spent[name].append(process.ask("least squares", rows=rows)["seconds"])
            one, several = statistics.median(spent["one"]), statistics.median(spent["all"])
            each = several / rows * 1e9
            tell(
                f"  {rows:>9,} x {columns:<4} one core {one:.4f} s, {os.cpu_count()} cores {several:.4f} s:"
                f" {one / several:.2f} x as fast, {each:.0f} ns a row"
            )
    tell("")


def machine(lsqd):
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    kernels = sorted({f"{pool['internal_api']} {pool['version']} ({pool.get('architecture')}, {pool['num_threads']} threads)" for pool in pools})
    tell(f"{model}, {os.cpu_count()} cores; lsqd on {lsqd.ask('peak')['threads']} threads; medians of {ROUNDS} rounds, fewer of slow peers")
    tell(f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, scikit-learn {sklearn.__version__},")
    tell(f"statsmodels {statsmodels.__version__}; {'; '.join(kernels)}")
    tell("")


def main():
    binary, wanted = sys.argv[1], sys.argv[2:]
    warnings.simplefilter("ignore", ConvergenceWarning)
    lsqd = Lsqd(binary)
    single = Lsqd(binary, threads=1)
    comparisons = {
        "tall": lambda: least_squares(lsqd, 1_000_000, 100, 20, exact=True),
        "narrow": lambda: least_squares(lsqd, 1_000_000, 20, 15, exact=False),
        "wide": lambda: least_squares(lsqd, 20_000, 2_000, 5, exact=False),
        "ridge": lambda: ridge(lsqd),
        "elastic": lambda: elastic(lsqd),
        "robust": lambda: robust(lsqd),
        "growth": lambda: growth(lsqd, single),
    }
    unknown = [name for name in wanted if name not in comparisons]
    if unknown:
        sys.exit(f"no such comparison: {', '.join(unknown)}; there are {', '.join(comparisons)}")
    machine(lsqd)
    for name in wanted or comparisons:
        comparisons[name]()
    lsqd.end()
    single.end()


if __name__ == "__main__":
    main()
