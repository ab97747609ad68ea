"""Steps fixed in advance, between which what leaves the last block is forecast: the frame of Spectrum and DPCache."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor

from benchmarks.rivals.bench import Bench

# Of a step, and the steps that were computed with what left the last block, the oldest first: what leaves it now.
Forecast = Callable[[int, Sequence[tuple[int, Tensor]]], Tensor]


class Forecasting:
    """The rule of a mask and a forecast from at most `reach` computed steps; branches of guidance are apart."""

    def __init__(self, bench: Bench, steps: Sequence[bool], forecast: Forecast, reach: int | None = None):
        self.bench, self.steps, self.forecast, self.reach = bench, steps, forecast, reach or len(steps)
        self.history: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)

    def __call__(self, image: Tensor, temb: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        history, step = self.history[self.bench.branch], self.bench.step
        if not self.steps[step]:
            return self.forecast(step, history).to(image.dtype)
        history.append((step, compute()))
        del history[: -self.reach]
        return history[-1][1]
