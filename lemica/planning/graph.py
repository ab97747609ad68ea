"""The error graph, what each stretch of reused steps costs, and its file format "lemica-graph/2".

Edge i -> j, i < j, means: steps i and j are computed, and every step between takes i's velocity. Its error is what this
does to the result (LeMiCa, arXiv 2511.00090, the section on the lexicographic minimax path). A gap of 1 reuses nothing
and costs 0; the file leaves such edges out.

The file is JSON: "format"; "target", an object with "model", "config", "sigmas" and "dtype"; "num_steps"; "max_gap";
"samples"; "sampler", "euler", "other" or null; "made_by"; "edges", a list of [i, j, error]; and where they are known
"products", the lower triangle of ``Moments.products``, row by row. Files of version 1 are read if they are of held
velocities and have products.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from lemica.files import write_text
from lemica.masks import Target, target_from
from lemica.moments import Moments

FORMAT = "lemica-graph/2"
OLD_FORMAT = "lemica-graph/1"

_SAMPLERS = {True: "euler", False: "other"}
_IS_EULER = {name: is_euler for is_euler, name in _SAMPLERS.items()}
_REMEDY = "write the graph again with lemica calibrate"

Edge = tuple[int, int, float]


@dataclass(frozen=True, eq=False)
class ErrorGraph:
    """Errors of holding the velocity, of one model and sampler, averaged over samples.

    Args:
        target: the model, sampler and arithmetic that were calibrated.
        num_steps: number of denoising steps N, at least 2.
        max_gap: the longest gap D, less than N.
        samples: the number of prompt and seed pairs behind the averages.
        errors: float64, (N, D + 1): ``errors[i, g]`` is the mean error of edge i -> i + g, at least 0, in the unit of
            the calibration's error. Whatever is passed in, gap 1 becomes 0 and places without an edge become NaN.
        moments: the samples' mean products of velocities, from which any forecast is planned; None if unknown.
        made_by: what made the graph, with versions, for people.
        is_euler: whether a step moves the latents by the difference of its noise levels times the guided velocity, and
            by nothing else; None if unknown, as in files from before this was told.

    The array is copied and made read-only. Raises ValueError, naming the edge, for a NaN, infinite or negative error.
    """

    target: Target
    num_steps: int
    max_gap: int
    samples: int
    errors: np.ndarray
    moments: Moments | None = None
    made_by: str = ""
    is_euler: bool | None = None

    def __post_init__(self):
        _check_sizes(self.num_steps, self.max_gap, self.samples)
        _check_sigmas(self.target.sigmas, self.num_steps)
        if self.moments is not None and not np.array_equal(self.moments.sigmas, np.array(self.target.sigmas or ())):
            raise ValueError(f"moments have other sigmas than the target; {_REMEDY}")
        object.__setattr__(self, "errors", self._checked(self.errors))

    @classmethod
    def from_edges(
        cls,
        *,
        target: Target,
        num_steps: int,
        max_gap: int,
        edges: Iterable[Sequence],
        moments: Moments | None = None,
        samples: int = 1,
        is_euler: bool | None = None,
    ) -> "ErrorGraph":
        """Build a graph from (i, j, error) for every edge of ``edge_pairs``, in any order.

        Raises ValueError for a missing, duplicated or malformed edge, or one out of range, and names it.

        Example:
            >>> graph = ErrorGraph.from_edges(target=Target("demo"), num_steps=3, max_gap=2, edges=[(0, 2, 0.5)])
            >>> graph.error(0, 2), graph.error(0, 1)
            (0.5, 0.0)
        """
        _check_sizes(num_steps, max_gap, samples)
        errors = _table(edges, num_steps, max_gap)
        return cls(target, num_steps, max_gap, samples, errors, moments, is_euler=is_euler)

    def error(self, i: int, j: int) -> float:
        """Error of edge i -> j, 0.0 for j = i + 1; raises ValueError where the graph has no such edge."""
        if 0 <= i < j < self.num_steps and j - i <= self.max_gap:
            return float(self.errors[i, j - i])
        raise ValueError(
            f"no edge {i} -> {j} in this graph; ask for 0 <= i < j <= {self.num_steps - 1} and j - i <= {self.max_gap}"
        )

    def edges(self) -> list[Edge]:
        """Every stored edge as (i, j, error), ascending; gap 1 is left out."""
        return [(i, j, float(self.errors[i, j - i])) for i, j in edge_pairs(self.num_steps, self.max_gap)]

    def _checked(self, errors: np.ndarray) -> np.ndarray:
        table = np.array(errors, dtype=np.float64)
        shape = (self.num_steps, self.max_gap + 1)
        if table.shape != shape:
            raise ValueError(f"errors have shape {table.shape}; give {shape}, by step and gap")
        starts, gaps = np.indices(shape)
        table[:, 1] = 0
        table[(gaps == 0) | (starts + gaps >= self.num_steps)] = np.nan
        for i, j in edge_pairs(self.num_steps, self.max_gap):
            value = table[i, j - i]
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"error of edge {i} -> {j} is {value}, want a finite number >= 0; {_REMEDY}")
        table.setflags(write=False)
        return table


def edge_pairs(num_steps: int, max_gap: int) -> Iterator[tuple[int, int]]:
    """Every (i, j) with 0 <= i < j < num_steps and 2 <= j - i <= max_gap, ascending: the edges that a graph stores."""
    return ((i, j) for i in range(num_steps) for j in range(i + 2, min(i + max_gap, num_steps - 1) + 1))


def read_graph(path: str | os.PathLike) -> ErrorGraph:
    """Read a graph file; keys that this version does not know are ignored.

    Raises ValueError of one line, naming the file and the offending edge, for anything that is not a whole, valid
    graph; OSError where the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        return _parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_graph(graph: ErrorGraph, path: str | os.PathLike) -> None:
    """Write a graph file, in one move, whose numbers read back to the bit: that is checked before the move."""
    text = _text_of(graph)

    def check(written: Path) -> None:
        if json.loads(_text_of(read_graph(written))) != json.loads(text):
            raise OSError(errno.EIO, "the graph does not read back as it was written", os.fspath(path))

    write_text(path, text, check)


def _text_of(graph: ErrorGraph) -> str:
    document = {
        "format": FORMAT,
        "target": asdict(graph.target),
        "num_steps": graph.num_steps,
        "max_gap": graph.max_gap,
        "samples": graph.samples,
        "sampler": None if graph.is_euler is None else _SAMPLERS[graph.is_euler],
        "made_by": graph.made_by,
        "edges": graph.edges(),
    }
    if graph.moments is not None:
        document["products"] = [row[: step + 1] for step, row in enumerate(graph.moments.products.tolist())]
    return _json(document)


def merge_graphs(graphs: Sequence[ErrorGraph]) -> ErrorGraph:
    """Average graphs of one target, each counted as often as it has samples; sums run in the order given.

    The average has moments if all graphs have. Raises ValueError if the graphs do not belong together.
    """
    if not graphs:
        raise ValueError("no graphs to merge; give at least one")
    if len(graphs) == 1:
        # Times its samples and divided by them, numbers would differ in the last bit.
        return graphs[0]
    for graph in graphs[1:]:
        _check_belongs(graphs[0], graph)
    samples = [graph.samples for graph in graphs]
    errors = np.average([graph.errors for graph in graphs], axis=0, weights=samples)
    moments = None
    if all(graph.moments is not None for graph in graphs):
        products = np.average([graph.moments.products for graph in graphs], axis=0, weights=samples)
        moments = Moments(graphs[0].moments.sigmas, products)
    first = graphs[0]
    return replace(first, samples=sum(samples), errors=errors, moments=moments)


def _check_belongs(first: ErrorGraph, other: ErrorGraph) -> None:
    pairs = {name: (getattr(first, name), getattr(other, name)) for name in ("num_steps", "max_gap")}
    pairs |= {name: (getattr(first.target, name), getattr(other.target, name)) for name in ("model", "config", "dtype")}
    for name, (mine, its) in pairs.items():
        if mine != its:
            raise ValueError(f"cannot merge graphs with {name} {mine!r} and {its!r}; merge only graphs of one {name}")
    if first.is_euler != other.is_euler:
        raise ValueError(f"cannot merge graphs of other samplers, or of which one does not tell its sampler; {_REMEDY}")
    if first.target.sigmas != other.target.sigmas:
        raise ValueError("cannot merge graphs with other noise levels; merge only graphs of one sampler")


def _parse(content: bytes) -> ErrorGraph:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); {_REMEDY}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found == OLD_FORMAT:
        return _graph_from(_renewed(document))
    if str(found).startswith("lemica-mask/"):
        raise ValueError("this is a mask; give the error graph that it was planned on")
    if found != FORMAT:
        raise ValueError(f"format is {found!r:.60}, want {FORMAT!r}; {_REMEDY}")
    return _graph_from(document)


def _renewed(document: dict) -> dict:
    """A version 1 file's content as version 2 has it; refused unless it is of held velocities and has products."""
    rule = document.get("reuse"), document.get("forecast", "hold")
    if rule != ("velocity", "hold"):
        raise ValueError(f"{OLD_FORMAT} of {rule[0]!r:.60} + {rule[1]!r:.60} is not read any more; {_REMEDY}")
    if not {"sigmas", "products"} <= document.keys():
        raise ValueError(f"{OLD_FORMAT} without sigmas and products is not read any more; {_REMEDY}")
    return document | {"target": {"model": document.get("model"), "sigmas": document["sigmas"]}}


def _graph_from(document: dict) -> ErrorGraph:
    required = ("target", "num_steps", "max_gap", "samples", "edges")
    for key in required:
        if key not in document:
            raise ValueError(f"key {key!r} is missing; {_REMEDY}")
    try:
        target = target_from(document["target"])
    except ValueError as error:
        raise ValueError(f"{error}; {_REMEDY}") from None
    settings = {key: document[key] for key in required} | {"target": target}
    graph = ErrorGraph.from_edges(moments=_moments_of(document, target), **settings)
    return replace(
        graph, made_by=str(document.get("made_by", "")), is_euler=_IS_EULER.get(str(document.get("sampler")))
    )


def _moments_of(document: dict, target: Target) -> Moments | None:
    if "products" not in document:
        return None
    try:
        rows = [np.array(row, dtype=np.float64) for row in document["products"]]
        lower = np.array([np.pad(row, (0, len(rows) - len(row))) for row in rows])
        return Moments(target.sigmas or (), lower + np.tril(lower, -1).T)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"sigmas and products do not make moments ({error}); {_REMEDY}") from None


def _json(document: dict) -> str:
    """JSON with one edge a line, so that a diff of two graphs shows which edges changed."""
    entries = []
    for key, value in document.items():
        is_table = isinstance(value, list) and value
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if is_table else json.dumps(value)
        entries.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _check_sizes(num_steps: int, max_gap: int, samples: int) -> None:
    for name, number, least in (("num_steps", num_steps, 2), ("max_gap", max_gap, 1), ("samples", samples, 1)):
        if type(number) is not int or number < least:
            raise ValueError(f"{name} is {number!r:.60}; give a whole number of at least {least}")
    if max_gap >= num_steps:
        raise ValueError(f"max_gap {max_gap} is too long for {num_steps} steps; give 1 to {num_steps - 1}")


def _check_sigmas(sigmas: Sequence[float] | None, num_steps: int) -> None:
    if sigmas is not None and not (len(sigmas) == num_steps + 1 and all(map(math.isfinite, sigmas))):
        raise ValueError(f"sigmas of the target must be {num_steps + 1} finite numbers; {_REMEDY}")


def _table(edges: Iterable[Sequence], num_steps: int, max_gap: int) -> np.ndarray:
    """Edges as an array, shape (num_steps, max_gap + 1), once each edge is there exactly once."""
    values = _unique_edges(edges, num_steps, max_gap)
    # Looked for before the array is made: a file that claims a million steps shall fail on its first missing edge.
    for i, j in edge_pairs(num_steps, max_gap):
        if (i, j) not in values:
            raise ValueError(f"error of edge {i} -> {j} is missing; {_REMEDY}")
    table = np.full((num_steps, max_gap + 1), np.nan)
    for (i, j), value in values.items():
        table[i, j - i] = value
    return table


def _unique_edges(edges: Iterable[Sequence], num_steps: int, max_gap: int) -> dict[tuple[int, int], float]:
    values = {}
    for edge in edges if isinstance(edges, Iterable) else [edges]:
        i, j, value = _checked_edge(edge)
        if not (0 <= i < num_steps and 2 <= j - i <= max_gap and j < num_steps):
            bounds = f"0 <= i, j <= {num_steps - 1} and 2 <= j - i <= {max_gap}"
            raise ValueError(f"error of edge {i} -> {j} is out of range, want {bounds}; {_REMEDY}")
        if (i, j) in values:
            raise ValueError(f"error of edge {i} -> {j} is given twice; {_REMEDY}")
        values[i, j] = value
    return values


def _checked_edge(edge: Sequence) -> Edge:
    try:
        i, j, value = edge
    except (TypeError, ValueError):
        i = j = value = None
    if not (_is_integer(i) and _is_integer(j) and isinstance(value, Real) and not isinstance(value, bool)):
        raise ValueError(f"edge {edge!r:.60} is not of the form [i, j, error]; {_REMEDY}")
    try:
        return int(i), int(j), float(value)
    except OverflowError:
        return int(i), int(j), math.inf


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
