"""What an evaluation is asked for: masks of one's own, and budgets, for which masks are made. No torch."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

from lemica.errors import Refused, refusing
from lemica.forecasts import taylor_step
from lemica.masks import RULES, Mask, read_mask

# How a budget's kept velocities can be carried on without a calibration.
WANTED_RULES = (*RULES, "taylor-step")


class GoesTooFar(ValueError):
    """taylor-step's weights would be too large for a mask of this budget."""


class Wanted(Protocol):
    """A row of the table to come, for whose mask the model is asked."""

    @property
    def for_enable(self) -> dict[str, Any]:
        """Arguments of ``lemica.enable``."""

    @property
    def for_kit(self) -> dict[str, Any]:
        """Fields of the kit's ``InferState``."""

    def carried_on(self, mask: Mask, sigmas: Sequence[float], is_euler: bool) -> Mask:
        """What becomes of the mask that was chosen so."""


@dataclass(frozen=True)
class OwnMask:
    """A mask of one's own; `force` takes it where it belongs to another model, sampler or arithmetic."""

    mask: Mask
    force: bool = False

    @property
    def for_enable(self) -> dict[str, Any]:
        return {"mask": self.mask, "force": self.force}

    @property
    def for_kit(self) -> dict[str, Any]:
        return {"lemica_mask": self.mask, "force_mask": self.force}

    def carried_on(self, mask: Mask, sigmas: Sequence[float], is_euler: bool) -> Mask:
        return mask


@dataclass(frozen=True)
class Budget:
    """A number of computed steps.

    Args:
        steps: how many, at least 2.
        spacing: where they lie, "released" or "balanced".
        rule: how kept velocities are carried on, one of ``WANTED_RULES``; None: as the spacing has it by default.
    """

    steps: int
    spacing: str = "released"
    rule: str | None = None

    @property
    def name(self) -> str:
        """Its row of the table.

        >>> Budget(25).name, Budget(25, "balanced", "hold").name
        ('budget 25', 'budget 25, balanced, velocity + hold')
        """
        spacing = "" if self.spacing == "released" else f", {self.spacing}"
        return f"budget {self.steps}{spacing}" + ("" if self.rule is None else f", velocity + {self.rule}")

    @property
    def for_enable(self) -> dict[str, Any]:
        return {"budget": self.steps, "spacing": self.spacing}

    @property
    def for_kit(self) -> dict[str, Any]:
        return {"lemica_step": self.steps, "lemica_spacing": self.spacing}

    def carried_on(self, mask: Mask, sigmas: Sequence[float], is_euler: bool) -> Mask:
        """The mask's steps with velocities that the rule carries on; the mask itself where there is no rule.

        Args:
            mask: of this budget and spacing.
            sigmas: the noise levels of the sampler, one per step at least; N + 1 if `is_euler`.
            is_euler: whether computed steps can pay back what a damped forecast has missed.

        Raises GoesTooFar where taylor-step's weights would be too large.
        """
        if self.rule is None:
            return mask
        weights = None if self.rule in RULES else taylor_step().rows(mask.steps)
        origin = {"origin": mask.origin, "made_by": mask.made_by}
        try:
            made = Mask(mask.steps, "velocity", weights, self.rule, **origin)
        except ValueError as error:
            raise GoesTooFar(
                f"{self.rule} would go too far over the long gaps of {mask.budget} of {mask.num_steps} steps"
            ) from error
        return made.with_weights(sigmas, is_euler)


def masks_of(names: Iterable[str], choose: Callable[[str], Mask]) -> tuple[dict[str, Mask], list[str]]:
    """The masks that were wanted, by name, and a note for each rule that does not go with its budget.

    Args:
        names: of the rows that were wanted.
        choose: gives the mask of one, and raises ValueError where it does not fit.

    Raises Refused where one does not fit, and where no mask is left.
    """
    masks, left_out = {}, []
    for name in names:
        with refusing(ValueError, hint=f" ({name})"):
            try:
                masks[name] = choose(name)
            except GoesTooFar as error:
                left_out.append(f"{name}: left out, for {error}")
    if not masks:
        raise Refused(f"there is nothing to evaluate; {left_out[0]}: give another of --rules, or larger --budgets")
    return masks, left_out


def wanted_methods(
    masks: Mapping[str, Mask | str | os.PathLike],
    budgets: Sequence[int],
    spacings: Sequence[str] = ("released",),
    rules: Sequence[str] = (),
    force: bool = False,
) -> dict[str, Wanted]:
    """Masks, and budgets with every spacing and rule, by the names of their rows.

    Args:
        masks: masks, or files of masks, by name.
        budgets: numbers of computed steps.
        spacings: where a budget's steps lie, of ``lemica.masks.SPACINGS``.
        rules: how its velocities are carried on, of ``WANTED_RULES``; none: as each spacing has it by default.
        force: take masks that belong to another model, sampler or arithmetic.

    Raises Refused for files that are no masks, for a name that another row has, and where there is nothing.

    Example:
        >>> list(wanted_methods({}, [25, 20], ["released", "balanced"]))
        ['budget 25', 'budget 25, balanced', 'budget 20', 'budget 20, balanced']
    """
    for budget in budgets:
        if budget < 2:
            raise Refused(f"a budget is at least 2, the first step and the last; got {budget}")
    if not (masks or budgets):
        raise Refused("there is nothing to evaluate: give masks or budgets")
    wanted = [Budget(*each) for each in product(budgets, spacings, rules or (None,))]
    of_budgets = {each.name: each for each in wanted}
    for name in masks:
        if name in ("no cache", "noise floor", *of_budgets) or name.startswith("fewer steps ("):
            raise Refused(f"{name!r} is the name of another row of the table: give the mask another one")
    with refusing(ValueError):
        read = {name: mask if isinstance(mask, Mask) else read_mask(mask) for name, mask in masks.items()}
    return {**{name: OwnMask(mask, force) for name, mask in read.items()}, **of_budgets}
