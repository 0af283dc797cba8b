"""Time the real/bogus score of candidates: their feature vectors, the forest, and what moved each score.

    python -m benchmarks.bench_features [--candidates 8000] [--model DIR] [--trees 300]

Point sources of S/N 5 to 60 on noise, 34 px apart, in images whose subtraction is known; one thread, seconds
of processor time, the least of the rounds. Without a model one of random trees is made, whole ones 12 deep:
more nodes than leaves of 5 rows of a training set of 50,000 can make.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import machine
from ks4diff.io.models import load_model, shipped_model
from ks4diff.numerics.forest import predicted
from ks4diff.numerics.pools import set_threads
from ks4diff.products.candidates import Candidates, empty_table
from ks4diff.products.features import FEATURE_NAMES
from ks4diff.products.model import Forest, RbModel
from ks4diff.stages.features import Scene, candidate_features
from ks4diff.stages.score import ScoreConfig, score_by_model
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig
from tests.known_pairs import Plan, Side
from tests.strategies import moffat

APART_PIX = 34
DEPTH = 12
WANTED_FEATURES_MS, WANTED_S = 0.3, 3.0
CONFIG = ScoreConfig()


def scene(n: int, seed: int = 1) -> tuple[Candidates, Scene]:
    """Return (n candidates, one in ten negative, their images)."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    size = APART_PIX * (side + 2)
    psf = {"science": moffat(41, 4.0), "template": moffat(41, 3.4)}
    plan = Plan(science=Side(psf=psf["science"]), template=Side(psf=psf["template"]))
    images = {name: rng.normal(0, 17.0, (size, size)).astype(np.float32) for name in psf}
    at = np.arange(n)
    y, x = (APART_PIX * (1 + k) + rng.integers(-4, 5, n) for k in (at // side, at % side))
    flux = 17.0 * np.exp(rng.uniform(np.log(5), np.log(60), n)) / np.sqrt((psf["science"] ** 2).sum())
    for k in range(n):
        name = "template" if k % 10 == 9 else "science"
        images[name][y[k] - 20 : y[k] + 21, x[k] - 20 : x[k] + 21] += flux[k] * psf[name]
    known = plan.known(images["science"], images["template"])
    difference = subtract(known.chip, known.template, known.match, known.registration, SubtractConfig())
    table = empty_table(n)
    table["x"], table["y"] = x + rng.uniform(-0.4, 0.4, n), y + rng.uniform(-0.4, 0.4, n)
    table["scorr"], table["is_positive"] = difference.score_corr[y, x], difference.score_corr[y, x] > 0
    table["saturated_distance"] = 100
    candidates = Candidates(table=table, cutouts=np.empty((n, 3, 0, 0), np.float32), flux_unit="count")
    return candidates, Scene(known.chip, known.template, known.match, difference)


def random_model(trees: int, samples: np.ndarray, seed: int = 2) -> RbModel:
    """Return a model of whole trees that ask random features at values of random samples."""
    rng = np.random.default_rng(seed)
    names = tuple(name for name in FEATURE_NAMES if name != "nexp_frac")
    nodes = 2 ** (DEPTH + 1) - 1
    # depth first: the right child lies as many nodes on as the left child's subtree holds
    size = np.zeros(nodes, dtype=np.int64)
    size[0] = nodes
    for node in range(nodes):
        if size[node] > 1:
            half = (size[node] - 1) // 2
            size[node + 1] = size[node + 1 + half] = half
    inner = size > 1
    right = np.where(inner, np.arange(nodes) + 1 + (size - 1) // 2, 0)
    feature = np.where(inner, rng.integers(0, len(names), (trees, nodes)), -1)
    of = samples[rng.integers(0, len(samples), (trees, nodes)), np.maximum(feature, 0)]
    first = nodes * np.arange(trees)
    forest = Forest(
        roots=first.astype(np.int32),
        feature=feature.ravel().astype(np.int16),
        threshold=np.nan_to_num(of).ravel().astype(np.float32),
        right=(right + first[:, None]).ravel().astype(np.int32),
        nan_left=np.zeros(trees * nodes, np.uint8),
        value=rng.random(trees * nodes),
        calibration_x=np.array([0.0, 1.0]),
        calibration_y=np.array([0.0, 1.0]),
        lowest=np.full(len(names), -1e30, np.float32),
        highest=np.full(len(names), 1e30, np.float32),
    )
    return RbModel(version="random", threshold=0.5, prior=0.5, features=names, forest=forest, card={})


def least(work: Callable[[], object], rounds: int) -> float:
    """Return the least processor seconds of a call, after one that compiles."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=8000)
    parser.add_argument("--model", type=Path, help="folder (the one that ships, else random trees)")
    parser.add_argument("--trees", type=int, default=300, help="random ones")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n = options.candidates
    set_threads(1)
    candidates, images = scene(n)
    vector = candidate_features(candidates, images, CONFIG.features)
    folder = options.model or shipped_model()
    model = random_model(options.trees, vector) if folder is None else load_model(folder)
    samples = np.ascontiguousarray(vector[:, [FEATURE_NAMES.index(name) for name in model.features]])
    forest = model.forest
    features_s = least(lambda: candidate_features(candidates, images, CONFIG.features), options.rounds)
    forest_s = least(lambda: predicted(*forest.walk(), samples), options.rounds)
    all_s = least(lambda: score_by_model(candidates, images, model, CONFIG), options.rounds)
    print(machine())
    print(
        f"{n} candidates; {len(forest.roots)} trees, {len(forest.feature)} nodes; processor seconds, 1 thread"
    )
    print(f"features {features_s:.2f} s, {1e3 * features_s / n:.3f} ms each (wanted {WANTED_FEATURES_MS})")
    print(f"forest {forest_s:.2f} s; reasons, flags and the rest {all_s - features_s - forest_s:.2f} s")
    print(f"features + score {all_s:.2f} s (wanted {WANTED_S} for 8000)")


if __name__ == "__main__":
    main()
