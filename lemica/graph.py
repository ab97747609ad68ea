"""The error graph, what each stretch of reused steps costs, and its file format "lemica-graph/1".

Edge i -> j, i < j, means: steps i and j are computed, every step between reuses i's residual. Its weight is the error
that this causes (LeMiCa, arXiv 2511.00090, the section on the lexicographic minimax path). A gap of 1 reuses nothing
and weighs 0; the file leaves such edges out.

The file is JSON: "format", "model", "num_steps", "max_gap", "reuse", "forecast", "samples"; "edges", a list of
[i, j, weight]; and where they are known "spread", a list of [i, j, deviation], "sigmas", N + 1 noise levels, and
"products", the lower triangle of ``Moments.products``, row by row.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from lemica.moments import Moments

FORMAT = "lemica-graph/1"

_SETTINGS = ("model", "num_steps", "max_gap", "reuse", "forecast")
_REQUIRED_KEYS = ("model", "num_steps", "max_gap", "reuse", "samples", "edges")
_REMEDY = "write the graph again with python -m lemica calibrate"

Edge = tuple[int, int, float]


@dataclass(frozen=True, eq=False)
class ErrorGraph:
    """Caching errors of one model, sampler and reuse rule, averaged over samples.

    model, num_steps, max_gap: what was calibrated, its number of denoising steps N >= 2, the longest gap D < N.
    reuse, forecast: what is reused and how it is carried to a reused step ("residual" and "hold" in the released kit).
    samples: the number of prompt and seed pairs behind the averages.
    weights: float64, shape (N, D + 1), ``weights[i, g]`` is the mean error of edge i -> i + g. In the unit of the
        calibration's error, at least 0. Whatever is passed in, gap 1 becomes 0 and places without an edge become NaN.
    spread: None, or an array like ``weights`` with each edge's standard deviation over the samples (population form).
    moments: None, or the samples' mean products of velocities, from which fitted forecasts are planned.

    The arrays are copied and made read-only. Raises ValueError, naming the edge, for a NaN, infinite or negative value.
    """

    model: str
    num_steps: int
    max_gap: int
    reuse: str
    forecast: str
    samples: int
    weights: np.ndarray
    spread: np.ndarray | None = None
    moments: Moments | None = None

    def __post_init__(self):
        _check_settings(**{name: getattr(self, name) for name in (*_SETTINGS, "samples")})
        object.__setattr__(self, "weights", self._checked(self.weights, "weight"))
        if self.spread is not None:
            object.__setattr__(self, "spread", self._checked(self.spread, "spread"))
        if self.moments is not None and self.moments.num_steps != self.num_steps:
            raise ValueError(f"moments are of {self.moments.num_steps} steps, want {self.num_steps}; {_REMEDY}")

    @classmethod
    def from_edges(
        cls,
        *,
        model: str,
        num_steps: int,
        max_gap: int,
        edges: Iterable[Sequence],
        spread: Iterable[Sequence] | None = None,
        samples: int = 1,
        reuse: str = "residual",
        forecast: str = "hold",
        moments: Moments | None = None,
    ) -> "ErrorGraph":
        """Build a graph from (i, j, weight) for every edge of ``edge_pairs``, in any order; likewise the spread.

        Raises ValueError for a missing, duplicated or malformed edge, or one out of range, and names it.
        """
        settings = {"model": model, "num_steps": num_steps, "max_gap": max_gap, "reuse": reuse, "forecast": forecast}
        _check_settings(samples=samples, **settings)
        weights = _table(edges, num_steps, max_gap, "weight")
        deviations = None if spread is None else _table(spread, num_steps, max_gap, "spread")
        return cls(samples=samples, weights=weights, spread=deviations, moments=moments, **settings)

    def weight(self, i: int, j: int) -> float:
        """Weight of edge i -> j, 0.0 for j = i + 1; raises ValueError where the graph has no such edge."""
        if 0 <= i < j < self.num_steps and j - i <= self.max_gap:
            return float(self.weights[i, j - i])
        raise ValueError(
            f"no edge {i} -> {j} in this graph; ask for 0 <= i < j <= {self.num_steps - 1} and j - i <= {self.max_gap}"
        )

    def edges(self) -> list[Edge]:
        """Every stored edge as (i, j, weight), ascending; gap 1 is left out."""
        return self._listed(self.weights)

    def _listed(self, table: np.ndarray) -> list[Edge]:
        return [(i, j, float(table[i, j - i])) for i, j in edge_pairs(self.num_steps, self.max_gap)]

    def _checked(self, values: np.ndarray, name: str) -> np.ndarray:
        table = np.array(values, dtype=np.float64)
        shape = (self.num_steps, self.max_gap + 1)
        if table.shape != shape:
            raise ValueError(f"{name} array has shape {table.shape}; give {shape}, indexed by step and gap")
        starts, gaps = np.indices(shape)
        table[:, 1] = 0
        table[(gaps == 0) | (starts + gaps >= self.num_steps)] = np.nan
        for i, j, value in self._listed(table):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of edge {i} -> {j} is {value}, want a finite number >= 0; {_REMEDY}")
        table.setflags(write=False)
        return table


def edge_pairs(num_steps: int, max_gap: int) -> Iterator[tuple[int, int]]:
    """Every (i, j) with 0 <= i < j < num_steps and 2 <= j - i <= max_gap, ascending: the edges that a graph stores."""
    return ((i, j) for i in range(num_steps) for j in range(i + 2, min(i + max_gap, num_steps - 1) + 1))


def read_graph(path: str | os.PathLike) -> ErrorGraph:
    """Read a graph file; keys that this version does not know are ignored, a missing "forecast" means "hold".

    Raises ValueError of one line, naming the file and the offending edge, for anything that is not a whole, valid
    "lemica-graph/1"; OSError where the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        return _parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_graph(graph: ErrorGraph, path: str | os.PathLike) -> None:
    """Write a graph file whose numbers read back to the bit; a reader sees the old file or the new one, never half."""
    document = {"format": FORMAT, **{name: getattr(graph, name) for name in (*_SETTINGS, "samples")}}
    document["edges"] = graph.edges()
    if graph.spread is not None:
        document["spread"] = graph._listed(graph.spread)
    if graph.moments is not None:
        document["sigmas"] = graph.moments.sigmas.tolist()
        document["products"] = [row[: step + 1] for step, row in enumerate(graph.moments.products.tolist())]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(_json(document), encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def merge_graphs(graphs: Sequence[ErrorGraph]) -> ErrorGraph:
    """Average graphs of one model and rule, each counted as often as it has samples; sums run in the order given.

    The spread is that of all samples pooled: each graph's own spread and the distance of its mean from the common one.
    It is None where a graph of several samples carries none. Raises ValueError if the graphs do not belong together.
    """
    if not graphs:
        raise ValueError("no graphs to merge; give at least one")
    first = graphs[0]
    for name, graph in itertools.product(_SETTINGS, graphs[1:]):
        mine, other = getattr(first, name), getattr(graph, name)
        if mine != other:
            raise ValueError(f"cannot merge graphs with {name} {mine!r} and {other!r}; merge only graphs of one {name}")
    samples = [graph.samples for graph in graphs]
    weights = np.average([graph.weights for graph in graphs], axis=0, weights=samples)
    return ErrorGraph(
        **{name: getattr(first, name) for name in _SETTINGS},
        samples=sum(samples),
        weights=weights,
        spread=_pooled_spread(graphs, weights),
        moments=_mean_moments([graph.moments for graph in graphs], samples),
    )


def _mean_moments(moments: Sequence[Moments | None], samples: Sequence[int]) -> Moments | None:
    """Averages of what graphs of one sampler know; None where one knows nothing."""
    if any(each is None for each in moments):
        return None
    if any(not np.array_equal(each.sigmas, moments[0].sigmas) for each in moments):
        raise ValueError("cannot merge graphs with other noise levels; merge only graphs of one sampler")
    products = np.average([each.products for each in moments], axis=0, weights=samples)
    return Moments(moments[0].sigmas, products)


def _pooled_spread(graphs: Sequence[ErrorGraph], mean: np.ndarray) -> np.ndarray | None:
    if any(graph.spread is None and graph.samples > 1 for graph in graphs):
        return None
    variances = [(0 if graph.spread is None else graph.spread**2) + (graph.weights - mean) ** 2 for graph in graphs]
    return np.sqrt(np.average(variances, axis=0, weights=[graph.samples for graph in graphs]))


def _parse(content: bytes) -> ErrorGraph:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); {_REMEDY}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ValueError(f"format is {found!r:.60}, want {FORMAT!r}; {_REMEDY}")
    for key in _REQUIRED_KEYS:
        if key not in document:
            raise ValueError(f"key {key!r} is missing; {_REMEDY}")
    known = {key: document[key] for key in (*_REQUIRED_KEYS, "forecast", "spread") if key in document}
    return ErrorGraph.from_edges(**known, moments=_moments_of(document))


def _moments_of(document: dict) -> Moments | None:
    if "products" not in document:
        return None
    try:
        rows = [np.array(row, dtype=np.float64) for row in document["products"]]
        lower = np.array([np.pad(row, (0, len(rows) - len(row))) for row in rows])
        return Moments(document["sigmas"], lower + np.tril(lower, -1).T)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"sigmas and products do not make moments ({error}); {_REMEDY}") from None


def _json(document: dict) -> str:
    """JSON with one edge a line, so that a diff of two graphs shows which edges changed."""
    entries = []
    for key, value in document.items():
        is_table = isinstance(value, list) and value
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if is_table else json.dumps(value)
        entries.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _check_settings(*, num_steps: int, max_gap: int, samples: int, **names: str) -> None:
    for name, text in names.items():
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name} is {text!r:.60}; give a name, such as 'hold' for forecast")
    for name, number, least in (("num_steps", num_steps, 2), ("max_gap", max_gap, 1), ("samples", samples, 1)):
        if type(number) is not int or number < least:
            raise ValueError(f"{name} is {number!r:.60}; give a whole number of at least {least}")
    if max_gap >= num_steps:
        raise ValueError(f"max_gap {max_gap} is too long for {num_steps} steps; give 1 to {num_steps - 1}")


def _table(edges: Iterable[Sequence], num_steps: int, max_gap: int, name: str) -> np.ndarray:
    """Edges as an array, shape (num_steps, max_gap + 1), once each edge is there exactly once."""
    values = _unique_edges(edges, num_steps, max_gap, name)
    # Looked for before the array is made: a file that claims a million steps shall fail on its first missing edge.
    for i, j in edge_pairs(num_steps, max_gap):
        if (i, j) not in values:
            raise ValueError(f"{name} of edge {i} -> {j} is missing; {_REMEDY}")
    table = np.full((num_steps, max_gap + 1), np.nan)
    for (i, j), value in values.items():
        table[i, j - i] = value
    return table


def _unique_edges(edges: Iterable[Sequence], num_steps: int, max_gap: int, name: str) -> dict[tuple[int, int], float]:
    values = {}
    for edge in edges if isinstance(edges, Iterable) else [edges]:
        i, j, value = _checked_edge(edge, name)
        if not (0 <= i < num_steps and 2 <= j - i <= max_gap and j < num_steps):
            bounds = f"0 <= i, j <= {num_steps - 1} and 2 <= j - i <= {max_gap}"
            raise ValueError(f"{name} of edge {i} -> {j} is out of range, want {bounds}; {_REMEDY}")
        if (i, j) in values:
            raise ValueError(f"{name} of edge {i} -> {j} is given twice; {_REMEDY}")
        values[i, j] = value
    return values


def _checked_edge(edge: Sequence, name: str) -> Edge:
    try:
        i, j, value = edge
    except (TypeError, ValueError):
        i = j = value = None
    if not (_is_integer(i) and _is_integer(j) and isinstance(value, Real) and not isinstance(value, bool)):
        raise ValueError(f"edge {edge!r:.60} is not of the form [i, j, {name}]; {_REMEDY}")
    try:
        return int(i), int(j), float(value)
    except OverflowError:
        return int(i), int(j), math.inf


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
