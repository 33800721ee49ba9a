"""What the server answers, beside what NumPy, SciPy, scikit-learn, statsmodels and exact fractions say of the same rows.

Everything goes through HTTP: rows are uploaded, models fitted, rows predicted and learnt as a client would. Each line of the table is one
figure of one estimator, with the largest relative difference over all problems it was asked for; past its tolerance the script fails.

It is not a test of accuracy on hard problems (that is `tests/numerics`, against certified values): here the problems are such that the peer
is right to its tolerance, so that what differs is a formula or a convention.

Usage: compare.py http://127.0.0.1:8080
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small problems; other jobs want the cores

import http.client
import itertools
import json
import math
import operator
import sys
import time
import urllib.parse
import warnings
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import patsy
import statsmodels.api as sm
from scipy import optimize, special, stats
from sklearn import calibration as calibration_peers
from sklearn import decomposition, impute, kernel_approximation, linear_model, metrics, preprocessing
from statsmodels.datasets import sunspots
from statsmodels.stats import diagnostic, stattools
from statsmodels.stats.outliers_influence import OLSInfluence, variance_inflation_factor
from statsmodels.tsa.ar_model import AutoReg
from statsmodels.tsa.base.prediction import PredictionResults

# --- the table


@dataclass(frozen=True)
class Tolerance:
    """How far two right answers may be apart, and why."""

    mark: str
    relative: float
    reason: str


CLOSED = Tolerance(
    "a",
    1e-9,
    "one linear system on both sides. The peer solves it in floats: condition numbers here are below 1e5, which leaves it 1e-11, and up to"
    " a hundred times that where terms cancel.",
)
EXACT = Tolerance("b", 1e-12, "the reference is exact (fractions, or the answer itself): what differs is the server's own rounding.")
TAIL = Tolerance(
    "c", 1e-8, "a tail probability: ln p moves by about t² (here below 1e3) times the relative difference of t, for which (a) leaves 1e-11."
)
ITERATED = Tolerance(
    "d",
    1e-8,
    "the peer iterates. RLM stops at steps of 1e-12; coordinate descent at a duality gap of 1e-13 of ‖y‖², which leaves slopes up to 1e-8"
    " of themselves. The same slopes solved from the signs that the peer found are held to (a).",
)
STABILISED = Tolerance(
    "e",
    1e-5,
    "a version that forgets is given a trace of information in every direction, of a size of 1e-6 of a column's own, times the variance"
    " inflation (here up to 12). Without forgetting, updates are held to (a).",
)
SAME = Tolerance("f", 0.0, "a count, a choice or a copy: it is the same or it is not.")

TOLERANCES = (CLOSED, EXACT, TAIL, ITERATED, STABILISED, SAME)


@dataclass
class Line:
    """One figure of one estimator."""

    item: str
    peer: str
    tolerance: Tolerance
    problems: int = 0
    largest: float = 0.0
    where: str = ""


@dataclass
class Table:
    """All figures, in the order in which they were first compared."""

    lines: dict = field(default_factory=dict)

    def compare(self, item, peer, problem, found, expected, tolerance, scale=None):
        """Adds one comparison. Relative to each expected number; with `scale`, to that (for numbers that may be anywhere near zero)."""
        line = self.lines.setdefault(item, Line(item, peer, tolerance))
        assert (line.peer, line.tolerance) == (peer, tolerance), item
        difference = relative_difference(found, expected, scale)
        line.problems += 1
        if difference > line.largest or not line.where:
            line.largest, line.where = difference, problem

    def show(self):
        """Prints the table; returns whether every line is within its tolerance."""
        width = max(len(line.item) for line in self.lines.values())
        peers = max(len(line.peer) for line in self.lines.values())
        print(f"{'what':<{width}}  {'against':<{peers}}  {'n':>3}  {'largest':>8}  {'allowed':>9}  where it is largest")
        failed = []
        for line in self.lines.values():
            good = line.largest <= line.tolerance.relative
            if not good:
                failed.append(line)
            allowed = f"{line.tolerance.relative:.0e} {line.tolerance.mark}"
            mark = "" if good else "  FAILED"
            print(f"{line.item:<{width}}  {line.peer:<{peers}}  {line.problems:>3}  {line.largest:>8.1e}  {allowed:>9}  {line.where}{mark}")
        print()
        for tolerance in TOLERANCES:
            print(f"{tolerance.mark}  {tolerance.relative:.0e}: {tolerance.reason}")
        comparisons = sum(line.problems for line in self.lines.values())
        print(f"\n{len(self.lines)} figures, {comparisons} comparisons, {len(failed)} past their tolerance")
        return not failed


def relative_difference(found, expected, scale=None):
    """The largest; infinite where a number is missing, not finite, or the shapes differ."""
    found, expected = (np.asarray(values, dtype=float) for values in (found, expected))
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return math.inf
    size = np.abs(expected) if scale is None else np.broadcast_to(np.asarray(scale, dtype=float), expected.shape)
    distance = np.abs(found - expected)
    if np.any((size == 0) & (distance > 0)):
        return math.inf
    return float(np.max(np.divide(distance, size, out=np.zeros_like(distance), where=size > 0), initial=0.0))


# --- the server


class Refused(Exception):
    """A reply that is not the one that was asked for."""


class Server:
    """The few calls of the contract that are needed here, over one connection."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
        self.names = 0

    def call(self, method, path, body=None):
        headers = {"Prefer": "wait=60"}
        if body is not None:
            body, headers["Content-Type"] = json.dumps(body, allow_nan=False), "application/json"
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        text = reply.read().decode()
        if reply.status not in (200, 201):
            raise Refused(f"{method} {path}: {reply.status} {text}")
        return json.loads(text)

    def name(self, kind):
        self.names += 1
        return f"{kind}-{self.names}"

    def upload(self, rows):
        name = self.name("rows")
        self.call("PUT", f"/v1/datasets/{name}", rows.body())
        return name

    def fit(self, rows, **asked):
        """Uploads rows (unless they are the name of a dataset) and fits."""
        dataset = rows if isinstance(rows, str) else self.upload(rows)
        model = asked.pop("model", None) or self.name("model")
        return self.call("POST", f"/v1/models/{model}/fits", {"dataset": dataset, "target": "y", **asked})

    def predict(self, version, rows, **asked):
        return self.call("POST", f"/v1/models/{version['model']}@{version['version']}/predict", rows.body() | asked)

    def learn(self, version, rows):
        return self.call("POST", f"/v1/models/{version['model']}/updates", rows.body())

    def diagnose(self, version):
        return self.call("GET", f"/v1/models/{version['model']}/versions/{version['version']}/diagnostics?limit=1000")

    def version(self, version):
        return self.call("GET", f"/v1/models/{version['model']}/versions/{version['version']}")


# --- rows


class Rows:
    """Named columns of one length."""

    def __init__(self, **columns):
        self.columns = {name: np.asarray(values) for name, values in columns.items()}

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name):
        return self.columns[name]

    def take(self, which):
        return Rows(**{name: values[which] for name, values in self.columns.items()})

    def drop(self, *names):
        return Rows(**{name: values for name, values in self.columns.items() if name not in names})

    def with_columns(self, **columns):
        return Rows(**(self.columns | columns))

    def body(self):
        lists = [[None if value != value else value for value in values.tolist()] for values in self.columns.values()]
        return {"columns": list(self.columns), "data": [list(row) for row in zip(*lists)]}

    def design(self, features, intercept=True):
        """The design that the contract describes, names and matrix: with an intercept the first level of a category has no column."""
        names, columns = [], []
        if intercept:
            names.append("(intercept)")
            columns.append(np.ones(len(self)))
        for feature in features:
            values = self[feature]
            if values.dtype.kind == "U":
                for level in sorted(set(LEVELS))[1 if intercept else 0 :]:
                    names.append(f"{feature}={level}")
                    columns.append((values == level).astype(float))
            else:
                names.append(feature)
                columns.append(values.astype(float))
        return names, np.column_stack(columns)


LEVELS = ("north", "east", "south", "west")
NUMBERS = ["a", "b", "c", "d", "e"]
FEATURES = [*NUMBERS, "region"]


def mixed(seed, count=240):
    """Offsets, scales from 1e-2 to 1e3, correlated columns, a skew one, integers, a category; errors uneven, and correlated in time."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((4, count))
    region = np.concatenate([LEVELS, random.choice(LEVELS, count - 4, p=[0.1, 0.4, 0.2, 0.3])])
    rows = Rows(
        a=12 + 3 * z[0],
        b=400 + 40 * (0.95 * z[0] + 0.3 * z[1]),
        c=0.05 + 0.02 * z[2],
        d=-3 + random.exponential(2.0, count),
        e=random.poisson(4.0, count),
        region=region,
        weight=random.uniform(0.2, 5.0, count),
        group=random.integers(0, 17, count),
        time=random.permutation(count) // 2,
    )
    errors = np.zeros(count)
    for row in range(1, count):
        errors[row] = 0.5 * errors[row - 1] + random.standard_normal() * (0.5 + 0.3 * abs(z[0, row]))
    effects = {"north": 0.0, "east": 1.5, "south": -2.0, "west": 0.7}
    truth = 5 + 2 * rows["a"] - 0.1 * rows["b"] + 60 * rows["c"] - 1.2 * rows["d"] + 0.4 * rows["e"]
    return rows.with_columns(y=truth + np.array([effects[level] for level in region]) + errors)


def even(seed, count, predictors, noise=1.0, relevant=None):
    """Standard normal columns with a common part, x0, x1, …; `relevant` of them matter."""
    random = np.random.default_rng(seed)
    design = random.standard_normal((count, predictors)) + 0.6 * random.standard_normal((count, 1)) + random.uniform(-2, 2, predictors)
    slopes = random.uniform(0.5, 3.0, predictors) * random.choice([-1.0, 1.0], predictors)
    slopes[relevant if relevant is not None else predictors :] = 0.0
    response = 1.5 + design @ slopes + noise * random.standard_normal(count)
    return Rows(**{f"x{index}": design[:, index] for index in range(predictors)}, y=response)


def features_of(rows):
    return [name for name in rows.columns if name.startswith("x")]


def column(version, member, names, target="y"):
    """A member of the coefficients, in the order of names."""
    known = {entry["name"]: entry[member] for entry in version["coefficients"] if entry["target"] == target}
    if set(known) != set(names):
        raise Refused(f"the coefficients are {sorted(known)}, not {sorted(names)}")
    return [math.nan if known[name] is None else known[name] for name in names]


# --- references of our own, from their definitions


def exact_solution(matrix, right):
    """A·x = b in exact fractions, for square A and one or more right sides."""
    rows = [[*left, *sides] for left, sides in zip(matrix, right)]
    size = len(rows)
    for pivot in range(size):
        best = max(range(pivot, size), key=lambda row: abs(rows[row][pivot]))
        rows[pivot], rows[best] = rows[best], rows[pivot]
        head = rows[pivot][pivot]
        rows[pivot] = [value / head for value in rows[pivot]]
        for row in range(size):
            factor = rows[row][pivot]
            if row != pivot and factor != 0:
                rows[row] = [value - factor * other for value, other in zip(rows[row], rows[pivot])]
    return [row[size:] for row in rows]


def fractions(values):
    """Floats as they are, as fractions; a matrix as a list of rows."""
    values = np.asarray(values)
    return [Fraction(value) for value in values.tolist()] if values.ndim == 1 else [fractions(row) for row in values]


class ExactFit:
    """Minimises Σw(y − Xβ)² + Σ penaltyⱼ(βⱼ − priorⱼ)² subject to C·β = values, in exact fractions.

    `errors` are those of a fit without penalties.
    """

    def __init__(self, design, response, weights=None, penalties=None, prior=None, constraints=None, values=None):
        columns = list(zip(*fractions(design)))
        response = fractions(response)
        weights = fractions(weights) if weights is not None else [Fraction(1)] * len(response)
        size = len(columns)
        penalties = fractions(penalties) if penalties is not None else [Fraction(0)] * size
        prior = fractions(prior) if prior is not None else [Fraction(0)] * size
        constraints = fractions(constraints) if constraints is not None else []
        values = fractions(values) if values is not None else []
        weighted = [[weight * value for weight, value in zip(weights, values)] for values in columns]
        product = lambda one, other: sum(map(operator.mul, one, other))
        gram = [[product(weighted[i], columns[j]) + (penalties[i] if i == j else 0) for j in range(size)] for i in range(size)]
        cross = [product(weighted[i], response) + penalties[i] * prior[i] for i in range(size)]
        zeros = [Fraction(0)] * len(constraints)
        system = [gram[i] + [constraint[i] for constraint in constraints] for i in range(size)] + [row + zeros for row in constraints]
        count = size + len(constraints)
        unit = [[Fraction(int(i == j)) for j in range(count)] for i in range(count)]
        solved = exact_solution(system, [[side, *unit[row]] for row, side in enumerate([*cross, *values])])
        found = [row[0] for row in solved[:size]]
        residuals = [value - sum(x * b for x, b in zip(row, found)) for value, row in zip(response, zip(*columns))]
        squares = product([weight * value for weight, value in zip(weights, residuals)], residuals)
        self.coefficients = np.array([float(value) for value in found])
        degrees = len(response) - size + len(constraints)
        self.errors = np.array([math.sqrt(solved[i][1 + i] * squares / degrees) for i in range(size)])


def centred(design, response, weights=None):
    """Design and response less their means, and rows times the roots of their weights; and the way back to the intercept."""
    weights = np.ones(len(response)) if weights is None else weights
    means, level = np.average(design, axis=0, weights=weights), np.average(response, weights=weights)
    roots = np.sqrt(weights)
    return (design - means) * roots[:, None], (response - level) * roots, lambda slopes: level - means @ slopes


def uncentred(design, response, weights=None):
    """The same without an intercept."""
    roots = np.ones(len(response)) if weights is None else np.sqrt(weights)
    return design * roots[:, None], response * roots, lambda _: 0.0


MASK = (1 << 64) - 1


def mixed_bits(state):
    """The finaliser of SplitMix64."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def folds_of(count, folds, seed):
    """The fold of each row: every run of as many rows as there are folds is dealt out to all of them, by Fisher and Yates."""
    dealt = []
    for run in range(-(-count // folds)):
        order = list(range(folds))
        state = mixed_bits(seed ^ mixed_bits(run))
        for index in range(folds):
            state = mixed_bits(state)
            other = index + state % (folds - index)
            order[index], order[other] = order[other], order[index]
        dealt.extend(order)
    return np.array(dealt[:count])


def held_out_of(count, fraction, seed):
    return np.array([mixed_bits(seed ^ mixed_bits(row)) < int(fraction * 2.0**64) for row in range(count)])


def segments_of(moments, folds):
    """As many rows in each segment as ties allow: 0..=folds."""
    ordered = np.sort(moments)
    cuts = [ordered[index * len(ordered) // (folds + 1)] for index in range(1, folds + 1)]
    return np.array([sum(cut <= moment for cut in cuts) for moment in moments])


def scores(errors, response, weights):
    """RMSE, MAE and R² of held-out rows."""
    mean = np.average(response, weights=weights)
    squares = np.average(errors**2, weights=weights)
    return np.sqrt(squares), np.average(np.abs(errors), weights=weights), 1 - squares / np.average((response - mean) ** 2, weights=weights)


# --- ordinary and weighted least squares

FIGURES = {
    "residual_std": lambda fit: np.sqrt(fit.scale),
    "r2": lambda fit: fit.rsquared,
    "adjusted_r2": lambda fit: fit.rsquared_adj,
    "f": lambda fit: fit.fvalue,
    "aic": lambda fit: fit.aic,
    "bic": lambda fit: fit.bic,
    "log_likelihood": lambda fit: fit.llf,
    "condition_number": lambda fit: fit.condition_number,
    "degrees_of_freedom": lambda fit: fit.df_resid,
}


def compare_inference(table, item, problem, version, names, fit, peer, target="y"):
    """What every coefficient says beside its estimate."""
    compare = lambda what, found, expected, tolerance, scale=None: table.compare(
        f"{item}: {what}", peer, problem, found, expected, tolerance, scale
    )
    limits = fit.conf_int(0.05)
    compare("coefficients", column(version, "estimate", names, target), fit.params, CLOSED)
    compare("standard errors", column(version, "std_error", names, target), fit.bse, CLOSED)
    compare("t", column(version, "t", names, target), fit.tvalues, CLOSED)
    compare("p", column(version, "p", names, target), fit.pvalues, TAIL)
    # A limit may be anywhere near zero; its rounding is that of estimate and error.
    size = np.abs(fit.params) + np.abs(fit.bse)
    found = np.array([column(version, "lower", names, target), column(version, "upper", names, target)]).T
    compare("95 % limits", found, limits, CLOSED, size[:, None])


def compare_figures(table, item, problem, figures, fit, peer):
    for name, of in FIGURES.items():
        if name in figures:
            table.compare(f"{item}: {name}", peer, problem, figures[name], of(fit), CLOSED)
    table.compare(f"{item}: f_p", peer, problem, figures["f_p"], fit.f_pvalue, TAIL)


def ordinary(server, table):
    rows = mixed(1)
    dataset = server.upload(rows)
    for intercept in (True, False):
        features = FEATURES if intercept else NUMBERS
        names, design = rows.design(features, intercept)
        for weights in (None, "weight"):
            item, peer, model = ("ols", "statsmodels OLS", sm.OLS) if weights is None else ("wls", "statsmodels WLS", sm.WLS)
            given = {} if weights is None else {"weights": rows["weight"]}
            fit = model(rows["y"], design, hasconst=intercept, **given).fit()
            for solver in ("auto", "cholesky", "qr", "svd", "exact"):
                problem = f"{'with' if intercept else 'without'} intercept, {solver}"
                version = server.fit(dataset, features=features, intercept=intercept, weights=weights, solver=solver)
                compare_inference(table, item, problem, version, names, fit, peer)
                compare_figures(table, item, problem, version["fit"], fit, peer)
                counts = [version["fit"]["observations"], version["fit"]["rank"]]
                table.compare(f"{item}: rows and rank", peer, problem, counts, [fit.nobs, len(names)], SAME)
                if intercept and weights is None:
                    factors = [variance_inflation_factor(design, index) for index in range(1, len(names))]
                    table.compare("ols: vif", "statsmodels", problem, column(version, "vif", names)[1:], factors, CLOSED)


def awkward_rows(server, table):
    """Rows of weight zero, and rows with gaps, are as if they were not there."""
    rows = mixed(2)
    weights = np.where(np.arange(len(rows)) % 7 == 3, 0.0, rows["weight"])
    names, design = rows.design(FEATURES)
    kept = weights > 0
    fit = sm.WLS(rows["y"][kept], design[kept], weights=weights[kept]).fit()
    version = server.fit(rows.with_columns(weight=weights), features=FEATURES, weights="weight")
    compare_inference(table, "wls", "rows of weight 0", version, names, fit, "statsmodels WLS")
    compare_figures(table, "wls", "rows of weight 0", version["fit"], fit, "statsmodels WLS")
    # Weights say how rows compare, and no more.
    fit = sm.WLS(rows["y"], design, weights=rows["weight"] * 1e-9).fit()
    version = server.fit(rows.with_columns(weight=rows["weight"] * 1e-9), features=FEATURES, weights="weight")
    compare_inference(table, "wls", "tiny weights", version, names, fit, "statsmodels WLS")
    compare_figures(table, "wls", "tiny weights", version["fit"], fit, "statsmodels WLS")
    gaps = np.arange(len(rows)) % 11 == 5
    holed = rows.with_columns(b=np.where(gaps, np.nan, rows["b"]))
    fit = sm.OLS(rows["y"][~gaps], design[~gaps]).fit()
    version = server.fit(holed, features=FEATURES)
    compare_inference(table, "ols", "rows with gaps", version, names, fit, "statsmodels OLS")
    compare_figures(table, "ols", "rows with gaps", version["fit"], fit, "statsmodels OLS")


def far_away(server, table):
    """A mean 1e6 times the spread: raw condition 1e7 and more."""
    rows = even(3, 60, 3)
    rows = rows.with_columns(**{f"x{index}": rows[f"x{index}"] * scale + 1e6 * scale for index, scale in enumerate([1.0, 1e3, 1e-3])})
    names, design = rows.design(features_of(rows))
    exact = ExactFit(design, rows["y"])
    version = server.fit(rows)
    table.compare(
        "ols, far from the origin: coefficients",
        "exact fractions",
        "three columns",
        column(version, "estimate", names),
        exact.coefficients,
        EXACT,
    )
    table.compare(
        "ols, far from the origin: standard errors",
        "exact fractions",
        "three columns",
        column(version, "std_error", names),
        exact.errors,
        EXACT,
    )


def polynomials(server, table):
    random = np.random.default_rng(4)
    for degree, low, high in ((3, -1.0, 1.0), (5, 0.5, 2.5)):
        x = random.uniform(low, high, 80)
        rows = Rows(x=x, y=np.polynomial.Polynomial(random.uniform(-2, 2, degree + 1))(x) + 0.05 * random.standard_normal(80))
        version = server.fit(rows, features=[{"column": "x", "as": "polynomial", "degree": degree}])
        names = ["(intercept)", "x", *(f"x^{power}" for power in range(2, degree + 1))]
        expected = np.polynomial.Polynomial.fit(x, rows["y"], degree).convert().coef
        table.compare(
            "polynomial: coefficients", "numpy Polynomial", f"degree {degree}", column(version, "estimate", names), expected, CLOSED
        )
    # Powers of the floats as they are, which no peer forms.
    for degree, centre in ((8, 0.0), (6, 30.0)):
        x = centre + random.uniform(-1, 1, 40)
        rows = Rows(x=x, y=np.cos(2 * (x - centre)) + 0.1 * random.standard_normal(40))
        version = server.fit(rows, features=[{"column": "x", "as": "polynomial", "degree": degree}])
        names = ["(intercept)", "x", *(f"x^{power}" for power in range(2, degree + 1))]
        exact = ExactFit(np.array([[Fraction(value) ** power for power in range(degree + 1)] for value in x.tolist()]), rows["y"])
        problem = f"degree {degree} about {centre:g}"
        table.compare(
            "polynomial, of high degree: coefficients",
            "exact fractions",
            problem,
            column(version, "estimate", names),
            exact.coefficients,
            EXACT,
        )
        table.compare(
            "polynomial, of high degree: standard errors",
            "exact fractions",
            problem,
            column(version, "std_error", names),
            exact.errors,
            EXACT,
        )


def transforms(server, table):
    """Each feature beside the same of scikit-learn or patsy, by the least-squares fit on what that makes."""
    random = np.random.default_rng(91)
    count = 240
    age, visits, region = random.uniform(18, 80, count), random.poisson(3.0, count), random.choice(LEVELS, count)
    response = np.sqrt(age) + 0.3 * np.log1p(visits) + (region == "south") + 0.2 * random.standard_normal(count)
    rows = Rows(age=age, visits=visits, region=region, y=response)
    dataset = server.upload(rows)
    columns = {"age": age, "visits": visits.astype(float), "region": region}

    def compare(item, peer, features, design, dataset=dataset):
        """`design` has the columns that the features make, in their order; the intercept is beside it."""
        version = server.fit(dataset, features=features)
        estimates = [entry["estimate"] for entry in version["coefficients"]]
        fit = sm.OLS(response, sm.add_constant(np.asarray(design, dtype=float), has_constant="add")).fit()
        size = np.abs(fit.params) + fit.bse
        table.compare(f"feature {item}: coefficients", peer, item, estimates, fit.params, CLOSED, scale=size)
        return version

    compare(
        "standardise", "patsy standardize", [{"column": "age", "as": "standardise"}], patsy.dmatrix("standardize(age, ddof=1) - 1", columns)
    )
    compare("log", "numpy log1p", [{"column": "visits", "as": "log", "offset": 1}], np.log1p(visits))
    product = patsy.dmatrix("age + region + age:region", columns)
    compare("interaction", "patsy a:b", ["age", "region", {"columns": ["age", "region"], "as": "interaction"}], reordered(product))
    product = patsy.dmatrix("age:region - 1", columns)
    compare("interaction, alone", "patsy a:b", [{"columns": ["age", "region"], "as": "interaction"}], product)
    product = patsy.dmatrix("age:visits - 1", columns)
    compare("interaction, of numbers", "patsy a:b", [{"columns": ["age", "visits"], "as": "interaction"}], product)
    bins = preprocessing.KBinsDiscretizer(5, encode="onehot-dense", strategy="quantile", quantile_method="linear", subsample=None)
    made = bins.fit_transform(age[:, None])[:, 1:]
    version = compare("bins", "sklearn KBinsDiscretizer", [{"column": "age", "as": "bins", "quantiles": 5}], made)
    table.compare("feature bins: edges", "sklearn KBinsDiscretizer", "5 bins", version["features"][0]["edges"], bins.bin_edges_[0], CLOSED)
    # A basis of another form: what is the same is its span.
    knots = [30.0, 45.0, 60.0]
    version = server.fit(dataset, features=[{"column": "age", "as": "spline", "knots": knots}])
    basis = np.asarray(patsy.dmatrix("cr(age, knots=knots) - 1", columns | {"knots": knots}))
    fit = sm.OLS(response, basis).fit()
    predicted = server.predict(version, Rows(age=age), interval={"kind": "confidence", "level": 0.95})
    interval = fit.get_prediction().conf_int()
    table.compare("feature spline: predictions", "patsy cr", "3 knots", predicted["predictions"], fit.fittedvalues, CLOSED)
    table.compare("feature spline: limits", "patsy cr", "3 knots", predicted["upper"], interval[:, 1], CLOSED)
    income = np.where(random.uniform(size=count) < 0.2, np.nan, random.exponential(1.0, count))
    gaps = server.upload(Rows(income=income, y=response))
    for filling in ("mean", "median"):
        imputer = impute.SimpleImputer(strategy=filling, add_indicator=True)
        asked = [{"column": "income", "as": "impute", "with": filling, "indicator": True}]
        compare("impute", "sklearn SimpleImputer", asked, imputer.fit_transform(income[:, None]), gaps)
    begin = np.datetime64("2023-01-01T00:00:00")
    at = begin + random.integers(0, 2 * 365 * 24 * 3600, count).astype("timedelta64[s]")
    moments = server.upload(Rows(at=np.char.add(at.astype(str), "Z"), y=response))
    days = at.astype("datetime64[D]")
    weekday = (days.astype(int) + 3) % 7
    hour = (at - days).astype(int) // 3600
    turn = at.astype(float) / 86400 / 7
    waves = [wave(2 * np.pi * k * turn) for k in (1, 2) for wave in (np.sin, np.cos)]
    asked = [
        {"column": "at", "as": "calendar", "parts": ["weekday"], "seasonality": {"period": "7d", "order": 2}},
        {"column": "at", "as": "calendar", "parts": ["hour"], "encode": "number"},
    ]
    made = np.column_stack([*(weekday == day for day in range(1, 7)), *waves, hour])
    compare("calendar", "numpy datetime64", asked, made, moments)
    # Frequencies are drawn, and those of the peer are others: with the server's own, the waves are the same.
    asked = [{"columns": ["age", "visits"], "as": "random_fourier", "components": 12, "gamma": 0.4, "seed": 3}]
    version = server.fit(dataset, features=asked)
    feature = version["features"][0]
    sampler = kernel_approximation.RBFSampler(gamma=0.4, n_components=12).fit(np.zeros((1, 2)))
    sampler.random_weights_ = np.reshape(feature["frequencies"], (12, 2)).T
    sampler.random_offset_ = np.array(feature["phases"])
    made = sampler.transform(stats.zscore(np.column_stack([age, visits]), ddof=1))
    compare("random_fourier", "sklearn RBFSampler", asked, made)


def reordered(matrix):
    """patsy's design without its intercept, numbers before categories before products, as the features stand."""
    names = matrix.design_info.column_names
    order = ["age", *(name for name in names if name.startswith("region")), *(name for name in names if ":" in name)]
    return np.asarray(matrix)[:, [names.index(name) for name in dict.fromkeys(order)]]


def several_targets(server, table):
    rows = mixed(5)
    random = np.random.default_rng(55)
    rows = rows.with_columns(
        y2=rows["y"] * 1e3 - 40 * rows["a"] + 300 * random.standard_normal(len(rows)), y3=random.standard_normal(len(rows))
    )
    targets = ["y", "y2", "y3"]
    names, design = rows.design(FEATURES)
    responses = np.column_stack([rows[target] for target in targets])
    dataset = server.upload(rows)
    together = linear_model.LinearRegression().fit(design[:, 1:], responses)
    for covariance, kind in (("classical", "nonrobust"), ("hc3", "HC3")):
        version = server.fit(dataset, target=targets, features=FEATURES, covariance=covariance)
        for place, target in enumerate(targets):
            problem = f"{target}, {covariance}"
            found, peer = column(version, "estimate", names, target), "sklearn LinearRegression"
            table.compare("several targets: slopes", peer, problem, found[1:], together.coef_[place], CLOSED)
            table.compare("several targets: intercepts", peer, problem, found[0], together.intercept_[place], CLOSED)
            fit = sm.OLS(rows[target], design).fit(cov_type=kind, use_t=True)
            compare_inference(table, "several targets", problem, version, names, fit, "statsmodels OLS", target)
            figures = next(figures for figures in version["fit"]["targets"] if figures["target"] == target)
            # F is that of the sums of squares, whatever is supposed of the errors.
            compare_figures(table, "several targets", problem, figures, sm.OLS(rows[target], design).fit(), "statsmodels OLS")
    ridge = linear_model.Ridge(alpha=3.0, solver="svd").fit(design[:, 1:], responses)
    version = server.fit(dataset, target=targets, features=FEATURES, estimator={"kind": "ridge", "penalty": 3.0})
    found = [column(version, "estimate", names, target) for target in targets]
    expected = np.column_stack([ridge.intercept_, ridge.coef_])
    table.compare("several targets: ridge", "sklearn Ridge", "penalty 3", found, expected, CLOSED)
    version = server.fit(dataset, target=targets, features=FEATURES, estimator={"kind": "lasso", "penalty": 0.2})
    for target in targets:
        fit = linear_model.Lasso(alpha=0.2, **TIGHT).fit(design[:, 1:], rows[target])
        found = column(version, "estimate", names, target)[1:]
        table.compare("several targets: lasso", "sklearn Lasso", target, found, fit.coef_, ITERATED)


def encodings(server, table):
    """Booleans, integers as categories, all levels."""
    rows = mixed(27)
    random = np.random.default_rng(56)
    flag, step = random.uniform(size=len(rows)) < 0.3, random.integers(-2, 12, len(rows)) // 4 * 5
    rows = rows.with_columns(flag=flag, step=step, y=rows["y"] + 2.0 * flag + 0.1 * step**2)
    dataset = server.upload(rows)
    levels = np.unique(step)
    steps = {f"step={level}": (step == level).astype(float) for level in levels}
    regions = {f"region={level}": (rows["region"] == level).astype(float) for level in sorted(LEVELS)}
    one, a, flags = {"(intercept)": np.ones(len(rows))}, {"a": rows["a"]}, {"flag": flag.astype(float)}
    whole = lambda columns: dict(list(columns.items())[1:])
    categories = {"column": "step", "as": "onehot"}
    cases = [
        ("the first levels dropped", True, ["a", "flag", categories, "region"], one | a | flags | whole(steps) | whole(regions)),
        ("all levels, no intercept", False, ["a", "flag", categories], a | flags | steps),
        ("drop_first without intercept", False, ["a", categories | {"drop_first": True}], a | whole(steps)),
        ("an integer as it is", True, ["a", "step"], one | a | {"step": step.astype(float)}),
    ]
    for problem, intercept, features, columns in cases:
        names, design = list(columns), np.column_stack(list(columns.values()))
        fit = sm.OLS(rows["y"], design, hasconst=intercept).fit()
        version = server.fit(dataset, features=features, intercept=intercept)
        compare_inference(table, "encodings", problem, version, names, fit, "statsmodels OLS")
        compare_figures(table, "encodings", problem, version["fit"], fit, "statsmodels OLS")


def smallest_norm(server, table):
    """Rank deficient: the slopes of smallest norm, and effects and predictions that do not depend on it."""
    rows = even(6, 50, 4)
    deficient = rows.with_columns(x4=rows["x0"] + 2 * rows["x1"], x5=rows["x2"])
    wide = even(7, 20, 35)
    for problem, rows in (("dependent columns", deficient), ("more columns than rows", wide)):
        names, design = rows.design(features_of(rows))
        for intercept in (True, False):
            matrix, response, level = (centred if intercept else uncentred)(design[:, 1:], rows["y"])
            slopes, _, rank, _ = np.linalg.lstsq(matrix, response, rcond=1e-12)
            version = server.fit(rows, features=features_of(rows), intercept=intercept)
            where = f"{problem}, {'with' if intercept else 'without'} intercept"
            table.compare(
                "rank deficient: coefficients",
                "numpy lstsq",
                where,
                column(version, "estimate", names[not intercept :])[intercept:],
                slopes,
                CLOSED,
            )
            table.compare("rank deficient: rank", "numpy lstsq", where, version["fit"]["rank"], rank + intercept, SAME)
            asked = rows.take(slice(0, 10)).drop("y")
            found = server.predict(version, asked)["predictions"]
            expected = design[:10, 1:] @ slopes + level(slopes)
            table.compare("rank deficient: predictions", "numpy lstsq", where, found, expected, CLOSED, np.std(rows["y"]))


# --- predictions


def compare_predictions(table, item, problem, server, version, fit, rows, features, intercept=True):
    names, design = rows.design(features, intercept)
    expected = fit.get_prediction(design)
    spread = np.std(fit.model.endog)
    # For clustered errors the peer tests coefficients with as many degrees of freedom as there are groups, less one, but leaves the limits of
    # predictions at n − k. Here it is the former for both; the limits are then those of the peer's standard errors.
    degrees = getattr(fit, "df_resid_inference", None) or fit.df_resid
    compare = lambda what, found, wanted: table.compare(
        f"{item}: {what}", "statsmodels get_prediction", problem, found, wanted, CLOSED, spread
    )
    asked = rows.drop(*(name for name in rows.columns if name not in features))
    for kind, member in (("confidence", "mean"), ("prediction", "obs")):
        for level in (0.95, 0.8):
            answer = server.predict(version, asked, interval={"kind": kind, "level": level}, explain=True)
            frame = expected.summary_frame(alpha=1 - level)
            compare("predictions", answer["predictions"], frame["mean"])
            limits = frame[[f"{member}_ci_lower", f"{member}_ci_upper"]].to_numpy().T
            if degrees != fit.df_resid:
                half = stats.t.ppf((1 + level) / 2, degrees) * getattr(expected, f"se_{member}")
                limits = np.array([frame["mean"] - half, frame["mean"] + half])
            compare(f"{kind} limits", np.array([answer["lower"], answer["upper"]]), limits)
            sums = [sum(parts.values()) for parts in answer["contributions"]]
            table.compare(f"{item}: contributions add up", "themselves", problem, sums, answer["predictions"], EXACT, spread)
    return answer


def predictions(server, table):
    rows, new = mixed(8), mixed(9, 40)
    dataset = server.upload(rows)
    for intercept in (True, False):
        features = FEATURES if intercept else NUMBERS
        names, design = rows.design(features, intercept)
        problem = f"{'with' if intercept else 'without'} intercept"
        fit = sm.OLS(rows["y"], design).fit()
        version = server.fit(dataset, features=features, intercept=intercept)
        answer = compare_predictions(table, "predict, ols", problem, server, version, fit, new, features, intercept)
        leverage = np.einsum(
            "ij,jk,ik->i", new.design(features, intercept)[1], fit.normalized_cov_params, new.design(features, intercept)[1]
        )
        table.compare("predict: leverage", "statsmodels OLS", f"new rows, {problem}", answer["leverage"], leverage, CLOSED)
        hat = OLSInfluence(fit).hat_matrix_diag
        training = rows.drop(*(name for name in rows.columns if name not in features))
        own = server.predict(version, training)
        table.compare("predict: leverage of training rows", "statsmodels OLSInfluence", problem, own["leverage"], hat, CLOSED)
        table.compare(
            "predict: extrapolates", "statsmodels OLSInfluence", f"new rows, {problem}", answer["extrapolates"], leverage > hat.max(), SAME
        )
        table.compare(
            "predict: extrapolates", "statsmodels OLSInfluence", f"training rows, {problem}", own["extrapolates"], np.zeros(len(rows)), SAME
        )
        weighted = sm.WLS(rows["y"], design, weights=rows["weight"]).fit()
        version = server.fit(dataset, features=features, intercept=intercept, weights="weight")
        compare_predictions(table, "predict, wls", problem, server, version, weighted, new, features, intercept)


# --- covariances


def covariances(server, table):
    rows, new = mixed(10), mixed(11, 30)
    dataset = server.upload(rows)
    kinds = [(kind, kind.upper(), {}) for kind in ("hc0", "hc1", "hc2", "hc3")]
    kinds += [({"kind": "hac", "lags": lags}, "HAC", {"maxlags": lags}) for lags in (0, 1, 6)]
    kinds += [({"kind": "cluster", "column": "group"}, "cluster", {"groups": rows["group"]})]
    for asked, kind, given in kinds:
        item = f"covariance {asked if isinstance(asked, str) else asked['kind']}"
        for intercept in (True, False):
            features = FEATURES if intercept else NUMBERS
            names, design = rows.design(features, intercept)
            for weights in (None, "weight"):
                problem = f"{'ols' if weights is None else 'wls'} {'with' if intercept else 'without'} intercept"
                problem += f", {given['maxlags']} lags" if "maxlags" in given else ""
                model = sm.OLS(rows["y"], design) if weights is None else sm.WLS(rows["y"], design, weights=rows["weight"])
                fit = model.fit(cov_type=kind, cov_kwds=given, use_t=True)
                version = server.fit(dataset, features=features, intercept=intercept, weights=weights, covariance=asked)
                compare_inference(table, item, problem, version, names, fit, f"statsmodels {kind}")
                compare_predictions(table, f"predict, {item}", problem, server, version, fit, new, features, intercept)


# --- penalties


def ridge(server, table):
    rows, new = mixed(12), mixed(28, 25)
    dataset = server.upload(rows)
    names, design = rows.design(FEATURES)
    for weights in (None, "weight"):
        given = rows["weight"] if weights else None
        for penalty in (1e-3, 1.0, 250.0, 1e6):
            problem = f"penalty {penalty:g}{', weighted' if weights else ''}"
            version = server.fit(dataset, features=FEATURES, weights=weights, estimator={"kind": "ridge", "penalty": penalty})
            fit = linear_model.Ridge(alpha=penalty, solver="svd").fit(design[:, 1:], rows["y"], sample_weight=given)
            found = column(version, "estimate", names)
            table.compare("ridge: slopes", "sklearn Ridge", problem, found[1:], fit.coef_, CLOSED)
            table.compare("ridge: intercept", "sklearn Ridge", problem, found[0], fit.intercept_, CLOSED)
            matrix, response, _ = centred(design[:, 1:], rows["y"], given)
            inverse = np.linalg.inv(matrix.T @ matrix + penalty * np.eye(len(names) - 1))
            effective = 1 + np.trace(matrix @ inverse @ matrix.T)
            table.compare(
                "ridge: effective parameters", "trace of the hat matrix", problem, version["fit"]["effective_parameters"], effective, CLOSED
            )
            squares = np.sum((response - matrix @ fit.coef_) ** 2)
            std = np.sqrt(squares / (len(rows) - effective))
            table.compare("ridge: residual_std", "its definition", problem, version["fit"]["residual_std"], std, CLOSED)
            errors = std * np.sqrt(np.diag(inverse))
            found = column(version, "std_error", names)[1:]
            table.compare("ridge: standard errors of slopes", "s²(XᵀX + λ)⁻¹", problem, found, errors, CLOSED)
            means = np.average(design[:, 1:], axis=0, weights=given)
            away = new.design(FEATURES)[1][:, 1:] - means
            leverage = 1 / (len(rows) if given is None else given.sum()) + np.einsum("ij,jk,ik->i", away, inverse, away)
            answer = server.predict(version, new.drop("y", "weight", "group", "time"), interval={"kind": "prediction", "level": 0.9})
            table.compare("predict, ridge: leverage", "x(XᵀX + λ)⁻¹x", problem, answer["leverage"], leverage, CLOSED)
            half = stats.t.ppf(0.95, len(rows) - effective) * std * np.sqrt(1 + leverage)
            centre, spread = fit.predict(new.design(FEATURES)[1][:, 1:]), np.std(rows["y"])
            table.compare("predict, ridge: predictions", "sklearn Ridge", problem, answer["predictions"], centre, CLOSED, spread)
            limits = [answer["lower"], answer["upper"]]
            table.compare(
                "predict, ridge: prediction limits", "their definition", problem, limits, [centre - half, centre + half], CLOSED, spread
            )
    fit = linear_model.Ridge(alpha=2.0, fit_intercept=False, solver="svd").fit(design[:, 1:6], rows["y"])
    version = server.fit(dataset, features=NUMBERS, intercept=False, estimator={"kind": "ridge", "penalty": 2.0})
    table.compare("ridge: slopes", "sklearn Ridge", "without intercept", column(version, "estimate", NUMBERS), fit.coef_, CLOSED)


def ridge_chosen(server, table):
    rows = even(13, 60, 12, noise=6.0)
    rows = rows.with_columns(weight=np.random.default_rng(57).uniform(0.2, 5.0, len(rows)))
    names, design = rows.design(features_of(rows))
    penalties = [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0]
    for intercept in (True, False):
        problem = f"{'with' if intercept else 'without'} intercept"
        asked = {"features": features_of(rows), "intercept": intercept}
        version = server.fit(rows, **asked, estimator={"kind": "ridge", "penalty": "auto", "penalties": penalties})
        fit = linear_model.RidgeCV(alphas=penalties, fit_intercept=intercept, store_cv_results=True, gcv_mode="svd").fit(
            design[:, 1:], rows["y"]
        )
        path = version["selection"]["path"]
        table.compare(
            "ridge auto: leave-one-out errors",
            "sklearn RidgeCV",
            problem,
            [point["score"] for point in path],
            fit.cv_results_.mean(axis=0),
            CLOSED,
        )
        chosen = [version["selection"]["penalty"], version["estimator"]["penalty"]]
        table.compare("ridge auto: penalty", "sklearn RidgeCV", problem, chosen, [fit.alpha_] * 2, SAME)
        found = column(version, "estimate", names[not intercept :])
        table.compare("ridge auto: slopes", "sklearn RidgeCV", problem, found[intercept:], fit.coef_, CLOSED)
        # With a grid of its own: the errors of that grid.
        version = server.fit(rows, **asked, estimator={"kind": "ridge", "penalty": "auto"})
        path = version["selection"]["path"]
        grid = [point["penalty"] for point in path]
        fit = linear_model.RidgeCV(alphas=grid, fit_intercept=intercept, store_cv_results=True, gcv_mode="svd").fit(
            design[:, 1:], rows["y"]
        )
        found = [point["score"] for point in path]
        table.compare(
            "ridge auto: leave-one-out errors", "sklearn RidgeCV", f"{problem}, own grid", found, fit.cv_results_.mean(axis=0), CLOSED
        )
        table.compare(
            "ridge auto: penalty", "sklearn RidgeCV", f"{problem}, own grid", [version["selection"]["penalty"]] * 2, [fit.alpha_] * 2, SAME
        )
        matrix, response, _ = centred(design[:, 1:], rows["y"]) if intercept else (design[:, 1:], rows["y"], None)
        values = np.linalg.svd(matrix, compute_uv=False) ** 2
        effective = intercept + np.array([np.sum(values / (values + penalty)) for penalty in grid])
        found = [point["effective_parameters"] for point in path]
        table.compare("ridge auto: effective parameters", "singular values", f"{problem}, own grid", found, effective, CLOSED)
        left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
        shrunk = [response - left @ (values / (values + penalty) * (left.T @ response)) for penalty in grid]
        generalised = [np.mean(rest**2) / (1 - spent / len(rows)) ** 2 for rest, spent in zip(shrunk, effective)]
        table.compare("ridge auto: gcv", "its definition", f"{problem}, own grid", [point["gcv"] for point in path], generalised, CLOSED)
        # With weights the peer's leave-one-out has another normalisation: each row is left out in earnest.
        few = penalties[2:6]
        version = server.fit(rows, **asked, weights="weight", estimator={"kind": "ridge", "penalty": "auto", "penalties": few})
        errors = np.empty((len(few), len(rows)))
        for place, penalty in enumerate(few):
            for row in range(len(rows)):
                others = np.delete(np.arange(len(rows)), row)
                fit = linear_model.Ridge(alpha=penalty, fit_intercept=intercept, solver="svd")
                fit.fit(design[others, 1:], rows["y"][others], sample_weight=rows["weight"][others])
                errors[place, row] = rows["y"][row] - fit.predict(design[row : row + 1, 1:])[0]
        means = errors**2 @ rows["weight"] / rows["weight"].sum()
        found = [point["score"] for point in version["selection"]["path"]]
        item, peer = "ridge auto, weighted", "sklearn Ridge without each row"
        table.compare(f"{item}: leave-one-out errors", peer, problem, found, means, CLOSED)
        table.compare(f"{item}: penalty", peer, problem, version["selection"]["penalty"], few[int(np.argmin(means))], SAME)


TIGHT = {"tol": 1e-13, "max_iter": 1_000_000}


def lasso(server, table):
    scaled, wide = mixed(14), even(15, 60, 100, relevant=6)
    problems = [("mixed", scaled, FEATURES, (0.03, 2.0)), ("more columns than rows", wide, features_of(wide), (0.05, 0.4))]
    for name, rows, features, penalties in problems:
        dataset = server.upload(rows)
        weighings = (None, "weight") if "weight" in rows.columns else (None,)
        for weights, intercept, penalty, ratio, positive in itertools.product(
            weighings, (True, False), penalties, (1.0, 0.3), (False, True)
        ):
            given = rows["weight"] if weights else np.ones(len(rows))
            chosen = features if intercept else [feature for feature in features if feature != "region"]
            names, design = rows.design(chosen, intercept)
            design = design[:, intercept:]
            kind = {"kind": "lasso"} if ratio == 1.0 else {"kind": "elastic_net", "l1_ratio": ratio}
            asked = kind | {"penalty": penalty, "positive": positive}
            version = server.fit(dataset, features=chosen, intercept=intercept, weights=weights, estimator=asked)
            fit = linear_model.ElasticNet(alpha=penalty, l1_ratio=ratio, fit_intercept=intercept, positive=positive, **TIGHT)
            fit.fit(design, rows["y"], sample_weight=given)
            item, peer = ("lasso", "sklearn Lasso") if ratio == 1.0 else ("elastic net", "sklearn ElasticNet")
            words = [word for word, said in ((", weighted", weights), (", positive", positive), (", no intercept", not intercept)) if said]
            problem = f"{name}, penalty {penalty:g}, l1_ratio {ratio:g}{''.join(words)}"
            found = column(version, "estimate", names)
            slopes = np.array(found[intercept:])
            table.compare(f"{item}: slopes", peer, problem, slopes, fit.coef_, ITERATED)
            table.compare(f"{item}: nonzero slopes", peer, problem, slopes != 0, fit.coef_ != 0, SAME)
            if intercept:
                size = np.abs(fit.intercept_) + np.std(rows["y"])
                table.compare(f"{item}: intercept", peer, problem, found[0], fit.intercept_, ITERATED, size)
            # Optimality with the signs that the peer found is one linear system.
            active = np.flatnonzero(fit.coef_)
            matrix, response, _ = centred(design, rows["y"], given) if intercept else uncentred(design, rows["y"], given)
            matrix = matrix[:, active]
            system = matrix.T @ matrix + given.sum() * penalty * (1 - ratio) * np.eye(len(active))
            inverse = np.linalg.inv(system)
            solved = np.linalg.solve(system, matrix.T @ response - given.sum() * penalty * ratio * np.sign(fit.coef_[active]))
            table.compare(f"{item}: slopes, solved", f"{peer}'s signs", problem, slopes[active], solved, CLOSED)
            # Errors are conditional on the choice of columns, and on the penalty as a prior.
            effective = intercept + np.trace(matrix @ inverse @ matrix.T)
            degrees = len(rows) - effective
            table.compare(
                f"{item}: effective parameters",
                "trace of the hat matrix",
                problem,
                version["fit"]["effective_parameters"],
                effective,
                CLOSED,
            )
            if degrees > 1:
                std = np.sqrt(np.sum((response - matrix @ solved) ** 2) / degrees)
                errors = np.array([entry["std_error"] for entry in version["coefficients"] if entry["name"] != "(intercept)"], dtype=float)
                table.compare(f"{item}: residual_std", "its definition", problem, version["fit"]["residual_std"], std, CLOSED)
                expected = std * np.sqrt(np.diag(inverse))
                table.compare(f"{item}: standard errors", "s²(XᵀX + λ)⁻¹", problem, errors[active], expected, CLOSED)


def lasso_chosen(server, table):
    rows = even(16, 103, 15, noise=4.0, relevant=5)
    names, design = rows.design(features_of(rows))
    design = design[:, 1:]
    for ratio in (1.0, 0.5):
        for folds, seed in ((5, 1), (4, 9)):
            kind = {"kind": "lasso"} if ratio == 1.0 else {"kind": "elastic_net", "l1_ratio": ratio}
            item = "lasso auto" if ratio == 1.0 else "elastic net auto"
            peer = "sklearn LassoCV" if ratio == 1.0 else "sklearn ElasticNetCV"
            problem = f"{folds} folds, seed {seed}"
            version = server.fit(rows, estimator=kind | {"penalty": "auto", "folds": folds, "seed": seed})
            path = version["selection"]["path"]
            grid = np.array([point["penalty"] for point in path])
            matrix, response, _ = centred(design, rows["y"])
            largest = np.max(np.abs(matrix.T @ response)) / len(rows) / ratio
            table.compare(f"{item}: grid", "its definition", problem, grid, largest * 10 ** np.linspace(0, -3, 100), CLOSED)
            own = folds_of(len(rows), folds, seed)
            splits = [(np.flatnonzero(own != fold), np.flatnonzero(own == fold)) for fold in range(folds)]
            fit = linear_model.ElasticNetCV(l1_ratio=ratio, alphas=grid, cv=splits, **TIGHT).fit(design, rows["y"])
            shares = np.array([len(held) for _, held in splits]) / len(rows)
            means = fit.mse_path_ @ shares
            table.compare(f"{item}: held-out errors", peer, problem, [point["score"] for point in path], means, ITERATED)
            errors = np.sqrt((fit.mse_path_ - means[:, None]) ** 2 @ shares / (folds - 1))
            table.compare(f"{item}: their standard errors", peer, problem, [point["std_error"] for point in path], errors, ITERATED)
            best = int(np.argmin(means))
            table.compare(f"{item}: penalty", peer, problem, version["selection"]["penalty"], grid[best], SAME)
            _, slopes, _ = linear_model.enet_path(matrix, response, l1_ratio=ratio, alphas=grid, **TIGHT)
            table.compare(f"{item}: nonzero slopes", peer, problem, [point["nonzero"] for point in path], (slopes != 0).sum(axis=0), SAME)
            table.compare(f"{item}: slopes", peer, problem, column(version, "estimate", names)[1:], slopes[:, best], ITERATED)
            version = server.fit(rows, estimator=kind | {"penalty": "auto", "folds": folds, "seed": seed, "one_standard_error": True})
            careful = int(np.flatnonzero(means <= means[best] + errors[best])[0])
            table.compare(f"{item}: penalty of one standard error", peer, problem, version["selection"]["penalty"], grid[careful], SAME)


# --- robust


def robust(server, table):
    for seed in (17, 18):
        rows = mixed(seed)
        random = np.random.default_rng(seed)
        wild = np.where(random.uniform(size=len(rows)) < 0.1, random.standard_cauchy(len(rows)) * 20, 0.0)
        rows = rows.with_columns(y=rows["y"] + wild, weight=random.integers(1, 4, len(rows)))
        dataset = server.upload(rows)
        norms = {
            "huber": (sm.robust.norms.HuberT, "statsmodels RLM, HuberT", (1.345, 2.0)),
            "bisquare": (sm.robust.norms.TukeyBiweight, "statsmodels RLM, TukeyBiweight", (4.685, 6.0)),
        }
        for kind, (norm, peer, thresholds) in norms.items():
            for threshold in thresholds:
                for intercept in (True, False):
                    features = FEATURES if intercept else NUMBERS
                    names, design = rows.design(features, intercept)
                    problem = f"{'with' if intercept else 'without'} intercept, threshold {threshold:g}, seed {seed}"
                    version = server.fit(dataset, features=features, intercept=intercept, estimator={"kind": kind, "threshold": threshold})
                    settled = {"tol": 1e-12, "maxiter": 2000, "conv": "coefs", "cov": "H1"}
                    fit = sm.RLM(rows["y"], design, M=norm(threshold)).fit(**settled)
                    table.compare(f"{kind}: coefficients", peer, problem, column(version, "estimate", names), fit.params, ITERATED)
                    table.compare(f"{kind}: standard errors", peer, problem, column(version, "std_error", names), fit.bse, ITERATED)
                    table.compare(f"{kind}: scale", peer, problem, version["fit"]["residual_std"], fit.scale, ITERATED)
                    items = server.diagnose(version)["items"]
                    table.compare(f"{kind}: weights of rows", peer, problem, [item["weight"] for item in items], fit.weights, ITERATED, 1.0)
                    residuals = [item["targets"][0]["standardised"] for item in items]
                    table.compare(f"{kind}: standardised residuals", peer, problem, residuals, fit.sresid, ITERATED, 1.0)
                    roots = np.sqrt(fit.weights)[:, None] * design
                    leverage = np.einsum("ij,ji->i", roots, np.linalg.pinv(roots))
                    table.compare(f"{kind}: leverage", "numpy pinv", problem, [item["leverage"] for item in items], leverage, ITERATED, 1.0)
                    # A row of weight 2 is two rows.
                    version = server.fit(
                        dataset, features=features, intercept=intercept, weights="weight", estimator={"kind": kind, "threshold": threshold}
                    )
                    repeated = np.repeat(np.arange(len(rows)), rows["weight"])
                    fit = sm.RLM(rows["y"][repeated], design[repeated], M=norm(threshold)).fit(**settled)
                    problem += ", weighted against repeated rows"
                    table.compare(f"{kind}: coefficients", peer, problem, column(version, "estimate", names), fit.params, ITERATED)
                    table.compare(f"{kind}: scale", peer, problem, version["fit"]["residual_std"], fit.scale, ITERATED)


# --- diagnostics


def diagnostics(server, table):
    rows = mixed(29, 150)
    dataset = server.upload(rows)
    for intercept, weights in itertools.product((True, False), (None, "weight")):
        features = FEATURES if intercept else NUMBERS
        names, design = rows.design(features, intercept)
        given = rows["weight"] if weights else np.ones(len(rows))
        problem = f"{'with' if intercept else 'without'} intercept{', weighted' if weights else ''}"
        fit = sm.WLS(rows["y"], design, weights=given, hasconst=intercept).fit()
        # Of the rows times the roots of their weights: the peer's influence is that of ordinary least squares.
        plain = sm.OLS(fit.wresid + fit.model.wexog @ fit.params, fit.model.wexog, hasconst=intercept).fit()
        influence = OLSInfluence(plain)
        found = server.diagnose(server.fit(dataset, features=features, intercept=intercept, weights=weights))
        whole, items = found["targets"][0], found["items"]
        peer = "statsmodels OLSInfluence"
        table.compare("diagnostics: leverage", peer, problem, [item["leverage"] for item in items], influence.hat_matrix_diag, CLOSED)
        residuals = [item["targets"][0]["residual"] for item in items]
        table.compare("diagnostics: residuals", peer, problem, residuals, fit.resid, CLOSED, np.std(rows["y"]))
        single = {
            "standardised": influence.resid_studentized_internal,
            "studentised": influence.resid_studentized_external,
            "cooks_distance": influence.cooks_distance[0],
            "dffits": influence.dffits[0],
        }
        for name, expected in single.items():
            values = [item["targets"][0][name] for item in items]
            table.compare(f"diagnostics: {name}", peer, problem, values, expected, CLOSED, np.abs(expected).max())
        effects = [[item["targets"][0]["dfbetas"][name] for name in names] for item in items]
        table.compare("diagnostics: dfbetas", peer, problem, effects, influence.dfbetas, CLOSED, np.abs(influence.dfbetas).max())
        largest = [
            ("leverages", found["leverages"], influence.hat_matrix_diag),
            ("cooks_distances", whole["cooks_distances"], influence.cooks_distance[0]),
            ("studentised residuals", whole["studentised"], influence.resid_studentized_external),
        ]
        for name, listed, values in largest:
            order = np.argsort(-np.abs(values))[: len(listed)]
            table.compare(f"diagnostics: largest {name}, rows", peer, problem, [entry["row"] for entry in listed], order + 1, SAME)
            table.compare(f"diagnostics: largest {name}", peer, problem, [entry["value"] for entry in listed], values[order], CLOSED)
        peer = "statsmodels"
        press = np.sum(influence.resid_press**2)
        table.compare("diagnostics: press", peer, problem, whole["press"], press, CLOSED)
        total = fit.centered_tss if intercept else fit.uncentered_tss
        table.compare("diagnostics: predicted_r2", peer, problem, whole["predicted_r2"], 1 - press / total, CLOSED, 1.0)
        table.compare("diagnostics: durbin_watson", peer, problem, whole["durbin_watson"], stattools.durbin_watson(fit.wresid), CLOSED)
        statistic, p, skewness, kurtosis = stattools.jarque_bera(fit.wresid)
        table.compare("diagnostics: skewness", peer, problem, whole["skewness"], skewness, CLOSED)
        table.compare("diagnostics: kurtosis", peer, problem, whole["kurtosis"], kurtosis, CLOSED)
        tests = {"jarque_bera": (statistic, p), "omnibus": tuple(stattools.omni_normtest(fit.wresid))}
        if intercept:
            tests["breusch_pagan"] = diagnostic.het_breuschpagan(fit.wresid, design)[:2]
        for name, (statistic, p) in tests.items():
            table.compare(f"diagnostics: {name}", peer, problem, whole[name]["statistic"], statistic, CLOSED)
            table.compare(f"diagnostics: {name} p", peer, problem, whole[name]["p"], p, TAIL)
        quantiles = whole["residual_quantiles"]
        expected = np.quantile(fit.wresid, [entry["level"] for entry in quantiles])
        values = [entry["value"] for entry in quantiles]
        table.compare("diagnostics: quantiles of residuals", "numpy quantile", problem, values, expected, CLOSED, np.std(fit.wresid))


# --- gradient descent and principal components


def descent(server, table):
    """The iterates of the formula, number for number; and where they lead."""
    rows = even(30, 90, 5)
    rows = rows.with_columns(weight=np.random.default_rng(58).uniform(0.2, 5.0, len(rows)))
    features, response = features_of(rows), rows["y"]
    pretrained = server.fit(even(31, 80, 5), features=features)
    dataset = server.upload(rows)
    for intercept, weights, momentum, prior in itertools.product((True, False), (None, "weight"), (0.0, 0.6), (False, True)):
        names, design = rows.design(features, intercept)
        given = rows["weight"] if weights else np.ones(len(rows))
        problem = f"{'with' if intercept else 'without'} intercept, momentum {momentum:g}"
        problem += f"{', weighted' if weights else ''}{', from a prior' if prior else ''}"
        asked = {"features": features, "intercept": intercept, "weights": weights}
        if prior:
            asked["prior"] = {"model": pretrained["model"], "strength": 0}
        rate, epochs = 0.02, 40
        point, step, losses = np.zeros(len(names)), np.zeros(len(names)), []
        if prior:
            point[intercept:] = column(pretrained, "estimate", ["(intercept)", *features])[1:]
        for _ in range(epochs):
            step = momentum * step - rate * design.T @ (given * (design @ point - response)) / given.sum()
            point = point + step
            losses.append(0.5 * np.average((design @ point - response) ** 2, weights=given))
        estimator = {"kind": "gradient", "learning_rate": rate, "momentum": momentum, "epochs": epochs, "tolerance": 1e-300}
        version = server.fit(dataset, **asked, estimator=estimator)
        peer = "the formula in numpy"
        table.compare("gradient: coefficients after 40 epochs", peer, problem, column(version, "estimate", names), point, CLOSED)
        table.compare("gradient: losses", peer, problem, version["descent"]["losses"], losses, CLOSED)
        fit = sm.WLS(response, design, weights=given, hasconst=intercept).fit()
        for batch in (None, 16):
            # A gradient of 1e-13 leaves coefficients that are right to that times the condition of the standardised columns.
            estimator = {"kind": "gradient", "momentum": momentum, "epochs": 100_000, "tolerance": 1e-13, "batch_size": batch}
            version = server.fit(dataset, **asked, estimator=estimator)
            where = f"{problem}{', batches' if batch else ''}"
            peer = "statsmodels"
            table.compare("gradient: where it converges", peer, where, column(version, "estimate", names), fit.params, CLOSED)
            table.compare("gradient: standard errors there", peer, where, column(version, "std_error", names), fit.bse, CLOSED)
            table.compare("gradient: it says so", peer, where, version["descent"]["converged"], True, SAME)


def components(server, table):
    rows = mixed(32)
    rows = rows.with_columns(share=rows["weight"] / rows["weight"].sum())
    names, design = rows.design(FEATURES)
    dataset, design = server.upload(rows), design[:, 1:]
    for standardise, weights, count in itertools.product((False, True), (None, "weight", "share"), (1, 3, 8)):
        given = rows[weights] if weights else np.ones(len(rows))
        problem = f"{count} components{', standardised' if standardise else ''}{f', weighted by {weights}' if weights else ''}"
        # The peer's PCA takes no weights: it sees centred rows times the roots of their weights, whose mean it must not take off again.
        means = np.average(design, axis=0, weights=given)
        scale = np.sqrt(np.average((design - means) ** 2, axis=0, weights=given)) if standardise else np.ones(design.shape[1])
        away = (design - means) / scale
        roots = np.sqrt(given)[:, None]
        both = np.vstack([away * roots, -away * roots])
        loadings = decomposition.PCA(count, svd_solver="full").fit(both).components_.T
        fit = sm.WLS(rows["y"], sm.add_constant(away @ loadings), weights=given).fit()
        back = np.zeros((1 + design.shape[1], 1 + count))
        back[1:, 1:] = loadings / scale[:, None]
        back[0] = np.concatenate([[1.0], -means @ back[1:, 1:]])
        version = server.fit(
            dataset, features=FEATURES, weights=weights, estimator={"kind": "pca", "components": count, "standardise": standardise}
        )
        peer = "sklearn PCA and statsmodels"
        expected = back @ fit.params
        table.compare("pca: coefficients", peer, problem, column(version, "estimate", names), expected, CLOSED)
        errors = np.sqrt(np.diag(back @ fit.cov_params() @ back.T))
        table.compare("pca: standard errors", peer, problem, column(version, "std_error", names), errors, CLOSED)
        table.compare("pca: residual_std", peer, problem, version["fit"]["residual_std"], np.sqrt(fit.scale), CLOSED)
        table.compare("pca: r2", peer, problem, version["fit"]["r2"], fit.rsquared, CLOSED)


# --- bounds, constraints, priors


def bounds(server, table):
    lower, upper = {"a": -1.0, "b": -0.05, "d": -0.7, "e": -5.0}, {"a": 1.2, "c": 30.0, "e": 0.3}
    for seed in (19, 20):
        rows = mixed(seed)
        dataset = server.upload(rows)
        for weights, intercept in itertools.product((None, "weight"), (True, False)):
            given = rows["weight"] if weights else np.ones(len(rows))
            names, design = rows.design(FEATURES if intercept else NUMBERS, intercept)
            own = names[intercept:]
            matrix, response, level = (centred if intercept else uncentred)(design[:, intercept:], rows["y"], given)
            problem = f"{'with' if intercept else 'without'} intercept{', weighted' if weights else ''}, seed {seed}"
            asked = {"features": FEATURES if intercept else NUMBERS, "intercept": intercept, "weights": weights}
            # In units in which the columns are alike: the peer's own test of optimality is absolute.
            unit = np.linalg.norm(matrix, axis=0)
            limits = (np.array([lower.get(name, 0.0) for name in own]), np.array([upper.get(name, np.inf) for name in own]))
            within = optimize.lsq_linear(
                matrix / unit, response, (limits[0] * unit, limits[1] * unit), method="bvls", tol=1e-15, max_iter=1000
            )
            nonnegative, _ = optimize.nnls(matrix, response, maxiter=1000)
            cases = [
                ("nnls", "scipy nnls", {}, nonnegative, nonnegative > 0),
                ("bounds", "scipy lsq_linear", {"lower": lower, "upper": upper}, within.x / unit, within.active_mask == 0),
            ]
            for item, peer, bounded, slopes, free in cases:
                version = server.fit(dataset, **asked, estimator={"kind": "nnls"} | bounded)
                found = column(version, "estimate", names)
                table.compare(f"{item}: slopes", peer, problem, found[intercept:], slopes, CLOSED)
                if intercept:
                    table.compare(f"{item}: intercept", peer, problem, found[0], level(slopes), CLOSED)
                # Errors are those of the free slopes, the others taken off.
                left = rows["y"] - design[:, intercept:][:, ~free] @ slopes[~free]
                kept = np.concatenate([np.ones(int(intercept), dtype=bool), free])
                fit = sm.WLS(left, design[:, kept], weights=given).fit()
                errors = np.array([entry["std_error"] for entry in version["coefficients"]], dtype=float)[kept]
                table.compare(f"{item}: standard errors", "statsmodels, free slopes", problem, errors, fit.bse, CLOSED)
                table.compare(
                    f"{item}: residual_std", "statsmodels, free slopes", problem, version["fit"]["residual_std"], np.sqrt(fit.scale), CLOSED
                )


def constraints(server, table):
    rows = mixed(21, 60)
    dataset = server.upload(rows)
    names, design = rows.design(FEATURES)
    cases = [
        ("a sum", [({"a": 1.0, "d": 1.0}, 1.0)]),
        ("equal coefficients", [({"d": 1.0, "e": -1.0}, 0.0), ({"region=south": 1.0, "region=west": 1.0}, 0.0)]),
        ("a slope at a value", [({"a": 1.0}, 2.5)]),
        ("an intercept at a value", [({"(intercept)": 1.0}, 4.0)]),
        ("an intercept at a value, and another", [({"(intercept)": 1.0}, 4.0), ({"b": 100.0, "a": 1.0}, -3.0)]),
        ("two slopes by two equations", [({"a": 1.0, "d": 3.0}, 1.0), ({"a": 0.3, "d": -1.0}, 1.7)]),
    ]
    for weights in (None, "weight"):
        for problem, equations in cases:
            problem += ", weighted" if weights else ""
            matrix = np.array([[coefficients.get(name, 0.0) for name in names] for coefficients, _ in equations])
            values = np.array([value for _, value in equations])
            exact = ExactFit(design, rows["y"], rows["weight"] if weights else None, constraints=matrix, values=values)
            asked = [{"coefficients": coefficients, "value": value} for coefficients, value in equations]
            version = server.fit(dataset, features=FEATURES, weights=weights, constraints=asked)
            found, errors = np.array(column(version, "estimate", names)), np.array(column(version, "std_error", names))
            free = exact.errors > 0
            peer = "exact fractions"
            table.compare("constraints: coefficients", peer, problem, found, exact.coefficients, EXACT)
            table.compare("constraints: standard errors", peer, problem, errors[free], exact.errors[free], EXACT)
            table.compare("constraints: what they determine has no error", peer, problem, errors[~free], exact.errors[~free], SAME)
            size = np.abs(matrix) @ np.abs(found)
            table.compare("constraints: they hold", "themselves", problem, matrix @ found, values, EXACT, size)
            if not weights:
                fit = sm.GLM(rows["y"], design).fit_constrained((matrix, values))
                peer = "statsmodels fit_constrained"
                table.compare("constraints: coefficients, a peer", peer, problem, found, fit.params, CLOSED)
                table.compare("constraints: standard errors, a peer", peer, problem, errors[free], fit.bse[free], CLOSED)


def priors(server, table):
    before, after = mixed(22, 150), mixed(23, 90)
    names, design = after.design(FEATURES)
    earlier = before.design(FEATURES)[1]
    pretrained = server.fit(before, features=FEATURES)
    dataset = server.upload(after)
    start = np.array(column(pretrained, "estimate", names))
    for weights in (None, "weight"):
        given = after["weight"] if weights else None
        for strength in (0.0, 1.0, 50.0, 1e5):
            problem = f"strength {strength:g}{', weighted' if weights else ''}"
            prior = {"model": pretrained["model"], "strength": strength}
            version = server.fit(dataset, features=FEATURES, weights=weights, prior=prior)
            pulled = np.array([0.0] + [strength] * (len(names) - 1))
            exact = ExactFit(design, after["y"], given, penalties=pulled, prior=start)
            table.compare("prior: coefficients", "exact fractions", problem, column(version, "estimate", names), exact.coefficients, EXACT)
            matrix, response, _ = centred(design[:, 1:], after["y"], given)
            fit = linear_model.Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(matrix, response - matrix @ start[1:])
            table.compare(
                "prior: slopes", "sklearn Ridge on y − Xw₀", problem, column(version, "estimate", names)[1:], start[1:] + fit.coef_, CLOSED
            )
            moved = {entry["name"]: (entry["from"], entry["to"]) for entry in version["moved"]}
            both = np.column_stack([start[1:], column(version, "estimate", names)[1:]])
            table.compare("prior: moved", "the coefficients", problem, [moved[name] for name in names[1:]], both, SAME)
    # The pretrained model's own information: as if all rows had been there.
    for weights in (None, "weight"):
        pretrained = server.fit(before, features=FEATURES, weights=weights)
        prior = {"model": pretrained["model"], "strength": {"kind": "information"}}
        version = server.fit(dataset, features=FEATURES, weights=weights, prior=prior)
        response, both = np.concatenate([before["y"], after["y"]]), np.vstack([earlier, design])
        given = np.concatenate([before["weight"], after["weight"]]) if weights else np.ones(len(response))
        fit = sm.WLS(response, both, weights=given).fit()
        problem = "weighted" if weights else "unweighted"
        compare_inference(table, "prior, information", problem, version, names, fit, "statsmodels on all rows")
        compare_figures(
            table,
            "prior, information",
            problem,
            {**version["fit"], "condition_number": fit.condition_number},
            fit,
            "statsmodels on all rows",
        )


# --- validation


def compare_validation(table, item, problem, peer, found, folds, response, predict, weights, tolerance):
    """`folds` are pairs of rows to learn from and rows to ask about; `predict` fits the ones and predicts the others."""
    weights = np.ones(len(response)) if weights is None else weights
    errors = [response[held] - predict(learnt, held) for learnt, held in folds]
    single = np.array([scores(error, response[held], weights[held]) for error, (_, held) in zip(errors, folds)])
    table.compare(f"{item}: rows of folds", peer, problem, found["rows"], [len(held) for _, held in folds], SAME)
    table.compare(f"{item}: rmse of folds", peer, problem, found["folds"], single[:, 0], tolerance)
    table.compare(f"{item}: mae of folds", peer, problem, found["mae"]["folds"], single[:, 1], tolerance)
    table.compare(f"{item}: r2 of folds", peer, problem, found["r2"]["folds"], single[:, 2], tolerance, 1.0)
    table.compare(
        f"{item}: means of folds",
        peer,
        problem,
        [found["mean"], found["mae"]["mean"], found["r2"]["mean"]],
        single.mean(axis=0),
        tolerance,
        [*single.mean(axis=0)[:2], 1.0],
    )
    everyone = np.concatenate([held for _, held in folds])
    pooled = scores(np.concatenate(errors), response[everyone], weights[everyone])
    table.compare(
        f"{item}: pooled", peer, problem, [found["pooled"][name] for name in ("rmse", "mae", "r2")], pooled, tolerance, [*pooled[:2], 1.0]
    )
    table.compare(f"{item}: rows of folds", peer, problem, found["pooled"]["rows"], len(everyone), SAME)


def validation(server, table):
    rows = mixed(24, 203)
    dataset = server.upload(rows)
    names, design = rows.design(FEATURES)
    design, response, count = design[:, 1:], rows["y"], len(rows)
    plans = []
    for folds, seed in ((5, 1), (10, 77)):
        own = folds_of(count, folds, seed)
        pairs = [(np.flatnonzero(own != fold), np.flatnonzero(own == fold)) for fold in range(folds)]
        plans.append(("validation kfold", {"kind": "kfold", "folds": folds, "seed": seed}, f"{folds} folds", pairs))
    held = held_out_of(count, 0.25, 3)
    pairs = [(np.flatnonzero(~held), np.flatnonzero(held))]
    plans.append(("validation holdout", {"kind": "holdout", "fraction": 0.25, "seed": 3}, "a quarter", pairs))
    own = segments_of(rows["time"], 4)
    pairs = [(np.flatnonzero(own <= fold), np.flatnonzero(own == fold + 1)) for fold in range(4)]
    plans.append(("validation time", {"kind": "time", "column": "time", "folds": 4}, "4 folds", pairs))
    plans.append(
        ("validation loo", {"kind": "loo"}, "each row", [(np.delete(np.arange(count), row), np.array([row])) for row in range(count)])
    )
    penalties = [0.1, 1.0, 10.0, 100.0]
    peers = [
        ("ols", {"kind": "ols"}, lambda: linear_model.LinearRegression(), CLOSED),
        ("ridge", {"kind": "ridge", "penalty": 20.0}, lambda: linear_model.Ridge(alpha=20.0, solver="svd"), CLOSED),
        ("ridge auto", {"kind": "ridge", "penalty": "auto", "penalties": penalties}, lambda: linear_model.RidgeCV(penalties), CLOSED),
        ("lasso", {"kind": "lasso", "penalty": 0.2}, lambda: linear_model.Lasso(alpha=0.2, **TIGHT), ITERATED),
    ]
    for item, asked, problem, pairs in plans:
        for name, estimator, make, tolerance in peers:
            alone = asked["kind"] == "loo"
            if alone and name not in ("ols", "ridge"):
                continue
            for weights in (None, "weight") if name != "ridge auto" else (None,):
                given = rows["weight"] if weights else None

                def predict(learnt, held):
                    fit = make().fit(design[learnt], response[learnt], sample_weight=None if given is None else given[learnt])
                    return fit.predict(design[held])

                version = server.fit(dataset, features=FEATURES, weights=weights, estimator=estimator, validation=asked)
                where = f"{name}, {problem}{', weighted' if weights else ''}"
                peer = "sklearn, fold by fold" if tolerance is CLOSED else "sklearn Lasso, fold by fold"
                line = item if tolerance is CLOSED else f"{item}, lasso"
                if alone:
                    errors = np.concatenate([response[held] - predict(learnt, held) for learnt, held in pairs])
                    pooled = scores(errors, response, given)
                    found = [version["validation"]["pooled"][member] for member in ("rmse", "mae", "r2")]
                    table.compare(f"{line}: pooled", peer, where, found, pooled, tolerance, [*pooled[:2], 1.0])
                else:
                    compare_validation(table, line, where, peer, version["validation"], pairs, response, predict, given, tolerance)


# --- classifiers


def sharpest(scores, labels, weights):
    """1/T of the softmax of scores/T under which the labels are likeliest: where the slope of −Σ w ln p is zero."""

    def slope(sharpness):
        chances = special.softmax(sharpness * scores, axis=1)
        return np.sum(weights * ((chances * scores).sum(axis=1) - scores[np.arange(len(labels)), labels]))

    return optimize.brentq(slope, 1e-3, 1e3, xtol=1e-15, rtol=1e-15)


def classifiers(server, table):
    rows = mixed(31, 300)
    ranks = np.digitize(rows["y"] - 0.3 * rows["d"] ** 2, np.quantile(rows["y"] - 0.3 * rows["d"] ** 2, [0.3, 0.75]))
    rows = rows.with_columns(kind=np.array(["low", "usual", "high"])[ranks], many=ranks == 2)
    dataset = server.upload(rows)
    _, design = rows.design(FEATURES)
    design = design[:, 1:]
    folds = folds_of(len(rows), 5, 1)
    pairs = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(5)]
    asked = rows.drop("y", "kind", "many", "weight", "group", "time")
    for target, weights, penalty in itertools.product(("kind", "many"), (None, "weight"), (0.0, 2.0, 300.0)):
        given = rows["weight"] if weights else np.ones(len(rows))
        estimator = {"kind": "ridge", "penalty": penalty}
        problem = f"{target}, penalty {penalty:g}{', weighted' if weights else ''}"
        make = lambda: linear_model.RidgeClassifier(alpha=penalty, solver="svd")  # noqa: E731
        peer = make().fit(design, rows[target], sample_weight=given)
        for calibration in ("temperature", "isotonic"):
            fit = {"target": target, "features": FEATURES, "weights": weights, "estimator": estimator, "calibration": calibration}
            version = server.fit(dataset, **fit)
            answer = server.predict(version, asked)
            classes = version["classes"]
            name = "sklearn RidgeClassifier"
            table.compare("classifier: classes", name, problem, [str(one) for one in classes] == [str(one) for one in peer.classes_], True, SAME)
            places = {one: place for place, one in enumerate(classes)}
            said = [places[one] for one in answer["predictions"]]
            truth = np.array([places[one] for one in rows[target].tolist()])
            table.compare("classifier: labels", name, problem, said, [places[one] for one in peer.predict(design).tolist()], SAME)
            names = [str(one).lower() if isinstance(one, bool) else one for one in classes]
            scores = np.array([[row[one] for one in names] for row in answer["scores"]])
            decision = peer.decision_function(design)
            found = 2 * scores - 1 if target == "kind" else 2 * scores[:, 1] - 1
            table.compare("classifier: decision function", name, problem, found, decision, CLOSED, 1.0)
            accuracy = np.average(peer.predict(design) == rows[target], weights=given)
            table.compare("classifier: accuracy", name, problem, version["fit"]["accuracy"], accuracy, EXACT)

            # Held out: every row is scored by a fit of the other folds.
            held = np.empty_like(scores)
            for learnt, out in pairs:
                single = make().fit(design[learnt], rows[target][learnt], sample_weight=given[learnt]).decision_function(design[out])
                held[out] = (single + 1) / 2 if target == "kind" else np.column_stack([1 - single, 1 + single]) / 2
            labels = held.argmax(axis=1)
            name = "sklearn RidgeClassifier, fold by fold"
            own = version["validation"]
            table.compare("classifier: confusion", name, problem, own["confusion"], metrics.confusion_matrix(truth, labels), SAME)
            right = [np.average(labels[out] == truth[out], weights=given[out]) for _, out in pairs]
            table.compare("classifier: accuracy of folds", name, problem, own["folds"], right, EXACT)
            precision, recall, _, counts = metrics.precision_recall_fscore_support(truth, labels, zero_division=0)
            found = [[one["precision"] or 0.0, one["recall"], one["rows"]] for one in own["classes"]]
            table.compare("classifier: precision, recall", name, problem, found, np.column_stack([precision, recall, counts]), EXACT)
            chances = np.array([[row[one] for one in names] for row in answer["probabilities"]])
            if calibration == "temperature":
                sharpness = sharpest(held, truth, given)
                name = "scipy brentq on the slope"
                table.compare("classifier: temperature", name, problem, version["calibration"]["temperature"], 1 / sharpness, CLOSED)
                expected = special.softmax(sharpness * scores, axis=1)
                table.compare("classifier: probabilities", "scipy softmax", problem, chances, expected, CLOSED, 1.0)
                losses = []
                for learnt, out in pairs:
                    sharpness = sharpest(held[learnt], truth[learnt], given[learnt])
                    likely = special.softmax(sharpness * held[out], axis=1)
                    losses.append(metrics.log_loss(truth[out], likely, sample_weight=given[out], labels=range(len(classes))))
                table.compare("classifier: log-loss of folds", "sklearn log_loss", problem, own["log_loss"]["folds"], losses, CLOSED)
            else:
                cross = calibration_peers.CalibratedClassifierCV(make(), method="isotonic", cv=pairs, ensemble=False)
                expected = cross.fit(design, rows[target], sample_weight=given).predict_proba(design)
                name = "sklearn CalibratedClassifierCV"
                table.compare("classifier: isotonic probabilities", name, problem, chances, expected, CLOSED, 1.0)
    # Rows that are learnt one by one lead where a fit of all of them does.
    first, rest = np.arange(120), np.arange(120, len(rows))
    fit = {"target": "kind", "features": FEATURES, "estimator": {"kind": "ridge", "penalty": 2.0}}
    version = server.fit(rows.take(first), **fit)
    for begin in range(0, len(rest), 60):
        server.learn(version, rows.take(rest[begin : begin + 60]).drop("y", "many", "weight", "group", "time"))
    answer = server.predict(version, asked)
    peer = linear_model.RidgeClassifier(alpha=2.0, solver="svd").fit(design, rows["kind"])
    found = 2 * np.array([[row[one] for one in peer.classes_] for row in answer["scores"]]) - 1
    table.compare("classifier, online: decision function", "sklearn RidgeClassifier on all rows", "ridge", found, peer.decision_function(design), CLOSED, 1.0)


# --- learning


def online(server, table):
    rows = mixed(25, 160)
    names, design = rows.design(FEATURES)
    response, half, count = rows["y"], 100, len(rows)
    first, rest = np.arange(half), np.arange(half, count)
    new = mixed(26, 20)

    def learn(version, weighted):
        wanted = rows.drop("time", "group", *([] if weighted else ["weight"]))
        replies = [server.learn(version, wanted.take(part)) for part in np.array_split(rest, 7)]
        return [np.concatenate([reply[member] for reply in replies]) for member in ("predictions", "errors")]

    for weighted in (False, True):
        weights = rows["weight"] if weighted else np.ones(count)
        version = server.fit(rows.take(first), features=FEATURES, weights="weight" if weighted else None)
        said, erred = learn(version, weighted)
        after = server.version(version)
        fit = sm.WLS(response, design, weights=weights).fit()
        problem = "weighted" if weighted else "unweighted"
        compare_inference(table, "online", problem, after, names, fit, "statsmodels on all rows")
        figures = {**after["fit"], "condition_number": fit.condition_number}
        compare_figures(table, "online", problem, figures, fit, "statsmodels on all rows")
        expected = []
        for row in rest:
            matrix, right, level = centred(design[:row, 1:], response[:row], weights[:row])
            unit = np.linalg.norm(matrix, axis=0)
            slopes = np.linalg.lstsq(matrix / unit, right, rcond=None)[0] / unit
            expected.append(level(slopes) + design[row, 1:] @ slopes)
        table.compare(
            "online: predictions before learning", "numpy lstsq on each row's past", problem, said, expected, CLOSED, np.std(response)
        )
        table.compare(
            "online: errors before learning",
            "numpy lstsq on each row's past",
            problem,
            erred,
            response[rest] - expected,
            CLOSED,
            np.std(response),
        )
        compare_predictions(table, "online, predict", problem, server, version, fit, new, FEATURES)
    # Old rows lose weight with every new one, and count for as many rows as they weigh.
    for factor in (0.99, 0.95):
        version = server.fit(rows.take(first), features=FEATURES, online={"forgetting_factor": factor})
        learn(version, False)
        after = server.version(version)
        fading = factor ** np.concatenate([np.full(half, count - half), np.arange(count - half)[::-1]])
        fit = sm.WLS(response, design, weights=fading).fit()
        degrees = fading.sum() - len(names)
        item, peer, problem = "online, forgetting", "statsmodels WLS, fading weights", f"factor {factor}"
        table.compare(f"{item}: coefficients", peer, problem, column(after, "estimate", names), fit.params, STABILISED)
        table.compare(f"{item}: degrees of freedom", peer, problem, after["fit"]["degrees_of_freedom"], degrees, CLOSED)
        widened = np.sqrt(fit.df_resid / degrees)
        table.compare(f"{item}: standard errors", peer, problem, column(after, "std_error", names), fit.bse * widened, STABILISED)
        table.compare(f"{item}: residual_std", peer, problem, after["fit"]["residual_std"], np.sqrt(fit.scale) * widened, STABILISED)
        table.compare(f"{item}: r2", peer, problem, after["fit"]["r2"], fit.rsquared, STABILISED)
    version = server.fit(rows.take(first), features=FEATURES, estimator={"kind": "ridge", "penalty": 5.0})
    learn(version, False)
    fit = linear_model.Ridge(alpha=5.0, solver="svd").fit(design[:, 1:], response)
    table.compare(
        "online, ridge: slopes",
        "sklearn Ridge on all rows",
        "penalty 5",
        column(server.version(version), "estimate", names)[1:],
        fit.coef_,
        CLOSED,
    )


# --- series


def series(server, table):
    """Autoregressions beside statsmodels' AutoReg: the same lags, columns beside them, and forecasts of many steps."""
    random = np.random.default_rng(41)
    count, steps = 300, 36
    beside = Rows(a=10 + random.standard_normal(count + steps), b=random.uniform(0, 1, count + steps), t=np.arange(count + steps) / 12.0)
    y = np.full(count, 40.0)
    for row in range(13, count):
        past = 0.4 * y[row - 1] + 0.15 * y[row - 2] + 0.5 * y[row - 12] - 0.2 * y[row - 13]
        y[row] = 5 + past + 0.8 * beside["a"][row] - 2 * beside["b"][row] + random.standard_normal()
    spots = np.asarray(sunspots.load_pandas().data["SUNACTIVITY"])
    problems = [
        ("sunspots, lags 1 2 9", spots, [1, 2, 9], [], True),
        ("sunspots, lags 1 2, no intercept", spots, [1, 2], [], False),
        ("seasonal lags", y, [1, 2, 12, 13], [], True),
        ("seasonal lags, columns beside", y, [1, 2, 12, 13], ["a", "b"], True),
        ("columns beside, a trend", y, [1], ["b", "t"], True),
    ]
    for problem, values, lags, names, intercept in problems:
        rows = len(values)
        known = Rows(y=values, **{name: beside[name][:rows] for name in names})
        ahead = Rows(**{name: beside[name][rows : rows + steps] for name in names})
        features = [*names, {"column": "y", "as": "lag", "lags": lags}]
        exog = np.column_stack([known[name] for name in names]) if names else None
        fit = AutoReg(values, lags, trend="c" if intercept else "n", exog=exog).fit(use_t=True)
        order = (["(intercept)"] if intercept else []) + [f"y:lag{lag}" for lag in lags] + names
        version = server.fit(known, features=features, intercept=intercept)
        peer = "statsmodels AutoReg"
        degrees = fit.nobs - len(order)
        further = np.column_stack([ahead[name] for name in names]) if names else None
        # AutoReg divides the squares by their number and takes the normal's quantile: brought to s² and Student's t.
        said = fit.get_prediction(rows, rows + steps - 1, exog_oos=further)
        wanted = PredictionResults(said.predicted_mean, said.var_pred_mean * (fit.nobs / degrees), dist="t", df=degrees)
        question = {"steps": steps, "interval": {"level": 0.9}, **(ahead.body() if names else {})}
        before = int(0.6 * rows)
        learnt = server.fit(known.take(np.arange(before)), features=features, intercept=intercept)
        for part in np.array_split(np.arange(before, rows), 5):
            server.learn(learnt, known.take(part))
        for item, own, tolerance in (("series", version, CLOSED), ("series, learnt row by row", server.version(learnt), CLOSED)):
            table.compare(f"{item}: observations", peer, problem, own["fit"]["observations"], fit.nobs, SAME)
            table.compare(f"{item}: coefficients", peer, problem, column(own, "estimate", order), fit.params, tolerance)
            table.compare(f"{item}: standard errors", peer, problem, column(own, "std_error", order), fit.bse, tolerance)
            found = server.call("POST", f"/v1/models/{own['model']}/forecast", question)
            scale = np.std(values)
            table.compare(f"{item}: forecasts", peer, problem, found["predictions"], wanted.predicted_mean, tolerance, scale)
            table.compare(f"{item}: errors of forecasts", peer, problem, found["std_error"], wanted.se_mean, tolerance)
            limits = np.asarray(wanted.conf_int(0.1))
            table.compare(f"{item}: limits of forecasts", peer, problem, found["lower"], limits[:, 0], tolerance, scale)
            table.compare(f"{item}: limits of forecasts", peer, problem, found["upper"], limits[:, 1], tolerance, scale)


ALL = (
    ordinary,
    awkward_rows,
    far_away,
    polynomials,
    transforms,
    several_targets,
    encodings,
    smallest_norm,
    predictions,
    covariances,
    ridge,
    ridge_chosen,
    lasso,
    lasso_chosen,
    robust,
    diagnostics,
    descent,
    components,
    bounds,
    constraints,
    priors,
    validation,
    classifiers,
    online,
    series,
)


def main(address, *wanted):
    begun = time.monotonic()
    server, table = Server(address), Table()
    for compare in ALL:
        if not wanted or compare.__name__ in wanted:
            started = time.monotonic()
            with warnings.catch_warnings():
                # Peers warn of dependent columns and of iterations that cannot reach 1e-13.
                warnings.simplefilter("ignore")
                compare(server, table)
            print(f"{compare.__name__}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    good = table.show()
    print(f"in {time.monotonic() - begun:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
