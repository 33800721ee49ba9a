#!/usr/bin/env python3
"""Handwritten digits told apart by least squares, by a running server and by scikit-learn beside it.

    cargo run --release                                            # in another terminal
    "$(.ci/venv tests/compare/requirements.txt)/bin/python" examples/digits.py [http://127.0.0.1:8080]

The rows are those of `sklearn.datasets.load_digits`, which scikit-learn brings along: 1,797 images of 8×8 pixels from 0 to 16, the test part of
E. Alpaydin & C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository (1998), CC BY 4.0. Nothing is fetched.

1. A classifier of 2,000 random Fourier features with a ridge penalty, on three quarters of the rows and judged on the rest. Beside it, on the
   same rows, scikit-learn's `Nystroem(2000)` (which takes as many components as there are rows, where those are fewer) and `RBFSampler(2000)`
   under a `RidgeClassifier` of the same kernel and penalty. Times are those of a whole fit: of the server from request to reply, with standard
   errors and the version stored; of scikit-learn of `fit` alone.
2. Fine-tuning, of 500 such features: 20 labelled rows, once from scratch and once around a head that was pretrained on other rows (`prior`), over ten draws.

It needs Python 3 with scikit-learn, and makes the datasets and models `digits`, `digits_*`, replacing those of the same name.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.parse

import numpy
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

COMPONENTS = 2000
HEAD = 500
GAMMA = 0.0008
PENALTY = 0.1
PIXELS = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]


def waves(components):
    """Fixed waves of raw pixels: what is fitted on other rows has the same columns, so that one fit can be the other's prior."""
    return [{"columns": PIXELS, "as": "random_fourier", "components": components, "gamma": GAMMA, "standardise": False}]


class Server:
    """The calls of the contract that are needed here, over one connection."""

    def __init__(self, address):
        parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
        self.connection = http.client.HTTPConnection(parts.netloc, timeout=600)

    def call(self, method, path, body=None, kind="application/json"):
        self.connection.request(method, path, body, {"Content-Type": kind, "Prefer": "wait=600"} if body else {})
        reply = self.connection.getresponse()
        text = reply.read().decode()
        if reply.status not in (200, 201, 204):
            sys.exit(f"{method} {path}: {reply.status} {text}")
        return json.loads(text) if text else None

    def store(self, name, images, labels):
        """A table of pixels and the digit: a category, though its names look like numbers."""
        lines = [",".join([*PIXELS, "digit"])]
        lines += [",".join([*(f"{pixel:g}" for pixel in image), str(label)]) for image, label in zip(images, labels)]
        self.call("PUT", f"/v1/datasets/{name}?types=digit:category", "\n".join(lines) + "\n", "text/csv")

    def fit(self, model, dataset, components, **asked):
        asked = {"dataset": dataset, "target": "digit", "features": waves(components), "watch_inputs": False, **asked}
        return self.call("POST", f"/v1/models/{model}/fits", json.dumps(asked))

    def labels(self, model, images):
        asked = json.dumps({"columns": PIXELS, "data": images.tolist()})
        return numpy.array(self.call("POST", f"/v1/models/{model}/predict?fields=predictions", asked)["predictions"]).astype(int)


def timed(work):
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun


def tell(name, right, seconds):
    print(f"{name:52} {100 * numpy.mean(right):6.2f} %  {seconds:6.2f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8080")
    server = Server(parser.parse_args().address)
    images, digits = load_digits(return_X_y=True)
    learnt, asked, known, wanted = train_test_split(images, digits, test_size=0.25, random_state=0, stratify=digits)

    print(f"{len(learnt)} images to learn from, {len(asked)} to be judged by                accuracy      fit")
    server.store("digits", learnt, known)
    _, seconds = timed(lambda: server.fit("digits", "digits", COMPONENTS, estimator={"kind": "ridge", "penalty": PENALTY}))
    own = server.labels("digits", asked) == wanted
    tell(f"lsqd, {COMPONENTS} random_fourier, ridge", own, seconds)
    for name, features in (
        (f"RBFSampler({COMPONENTS}) + RidgeClassifier", RBFSampler(gamma=GAMMA, n_components=COMPONENTS, random_state=0)),
        (f"Nystroem({COMPONENTS}) + RidgeClassifier", Nystroem(gamma=GAMMA, n_components=min(COMPONENTS, len(learnt)), random_state=0)),
    ):
        peer, seconds = timed(lambda: make_pipeline(features, RidgeClassifier(alpha=PENALTY)).fit(learnt, known))
        tell(name, peer.predict(asked) == wanted, seconds)

    print("\n20 labelled images of digits, mean of 10 draws                          accuracy")
    pretraining, rest, named, others = train_test_split(learnt, known, train_size=600, random_state=1, stratify=known)
    server.store("digits_pretraining", pretraining, named)
    server.fit("digits_head", "digits_pretraining", HEAD, estimator={"kind": "ridge", "penalty": PENALTY})
    scores = {"from scratch": [], "around the head pretrained on 600 others": []}
    for draw in range(10):
        few, _, few_labels, _ = train_test_split(rest, others, train_size=20, random_state=draw, stratify=others)
        server.store("digits_few", few, few_labels)
        server.fit("digits_scratch", "digits_few", HEAD, estimator={"kind": "ridge", "penalty": PENALTY})
        server.fit("digits_tuned", "digits_few", HEAD, prior={"model": "digits_head", "strength": 1.0})
        for name, model in zip(scores, ("digits_scratch", "digits_tuned")):
            scores[name].append(numpy.mean(server.labels(model, asked) == wanted))
    for name, found in scores.items():
        print(f"{name:52} {100 * numpy.mean(found):6.2f} %")


if __name__ == "__main__":
    main()
