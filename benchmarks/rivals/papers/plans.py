"""What the planners of DPCache and MeanCache have in common."""


class NoPlan(ValueError):
    """There is no path of so few computed steps: gaps would be too long."""

    def __init__(self, budget: int):
        super().__init__(f"no path of {budget} steps")
