"""Masks for other engines: the configuration that makes an engine obey a mask, with comments on what it cannot carry.

cache-dit 1.5.3 takes a list of steps, and so do xDiT 0.7.0 and SGLang 0.5.23, which run on cache-dit. On a reused step
the first block runs, and what the blocks after it added on the last computed step is added again. Pipelines of
diffusers are served by this library's own hook.

    >>> mask = Mask(mask_of((0, 1, 4), 5))
    >>> run_lengths(mask.steps)
    ([2, 1], [2])
    >>> EXPORTS["diffusers"](mask, "mask.json").splitlines()[-1]
    'pipe(..., num_inference_steps=5)'

Standard library only: no engine is imported.
"""

import json
import shlex
import textwrap
from collections.abc import Callable, Iterable
from itertools import groupby

from lemica.masks import Mask, StepMask

_WIDTH = 110
# Of cache-dit. "static" reuses wherever the mask says so; "dynamic" would look at the first block's output before.
_SETTINGS = {
    "steps_computation_policy": "static",
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "max_warmup_steps": 0,
}
_KEPT = {
    "velocity": "The mask is of velocities, what the transformer returns; cache-dit reuses residuals of its blocks.",
    "residual": "The mask is of residuals of all blocks; cache-dit reuses those of the blocks after the first.",
}
_CACHE_DIT = """\
{head}
import cache_dit

# True where a step calls the transformer twice, with guidance and without. False where it does so once: guidance
# is off, distilled into the model, or both are in one batch. None: cache-dit goes by the class of the pipeline.
# Where that changes within a run, the mask is not obeyed.
separate_cfg = None

config = cache_dit.DBCacheConfig(
    num_inference_steps={num_steps},
    steps_computation_mask=[
{steps}
    ],
{settings}
    enable_separate_cfg=separate_cfg,
)
cache_dit.enable_cache(pipe, cache_config=config)

# For a pipeline that cache-dit does not know, name its blocks, and the pattern of what they take and return, in the
# place of the last line. Leave pipe in: without it every run begins one call later than the run before.
# blocks = cache_dit.BlockAdapter(
#     pipe=pipe,
#     transformer=pipe.transformer,
#     blocks=pipe.transformer.transformer_blocks,
#     forward_pattern=cache_dit.ForwardPattern.Pattern_0,
# )
# cache_dit.enable_cache(blocks, cache_config=config)
"""
_XDIT = """\
{head}
xdit \\
{options}
    "$@"
"""
_SGLANG = """\
{head}
{exports}

# The same for one request, in its body:
# {request}
"""
_DIFFUSERS = """\
{head}
import lemica

lemica.enable(pipe, {file})
pipe(..., num_inference_steps={num_steps})
"""


def run_lengths(steps: StepMask) -> tuple[list[int], list[int]]:
    """The lengths of the runs of computed steps, and of the runs of reused steps between them, both in order."""
    runs = [(computed, len(list(run))) for computed, run in groupby(steps)]
    return [length for computed, length in runs if computed], [length for computed, length in runs if not computed]


def to_cache_dit(mask: Mask, file: str) -> str:
    """Python that enables the mask on a pipeline `pipe` with cache-dit 1.5.3; `file` is the mask's, for the comments.

    >>> print(to_cache_dit(Mask(mask_of((0, 1, 4), 5)), "mask.json"))  # doctest: +SKIP
    """
    notes = [
        *_lost(mask),
        f"Only for runs of {mask.num_steps} steps: others are not refused, nor do they obey the mask.",
    ]
    return _CACHE_DIT.format(
        head=_head(mask, file, "cache-dit 1.5.3", notes),
        num_steps=mask.num_steps,
        steps=textwrap.indent("\n".join(textwrap.wrap(", ".join(map(str, _bits(mask))) + ",", _WIDTH - 8)), " " * 8),
        settings="\n".join(f"    {name}={json.dumps(value)}," for name, value in _SETTINGS.items()),
    )


def to_xdit(mask: Mask, file: str) -> str:
    """A shell script that runs xDiT 0.7.0 with the mask, and with the options that the script is given.

    `file` is the mask's, for the comments.

    >>> print(to_xdit(Mask(mask_of((0, 1, 4), 5)), "mask.json"))  # doctest: +SKIP
    """
    # Both would else come from xDiT's own preset for the model.
    presets = {"scm_policy": None, "enable_taylorseer": False}
    config = {"steps_computation_mask": _bits(mask)} | _SETTINGS | presets
    options = {
        "num_inference_steps": mask.num_steps,
        "cache_method": "dbcache",
        "cache_config": shlex.quote(json.dumps(config)),
    }
    notes = [
        *_lost(mask),
        f"Only for {mask.num_steps} steps: other numbers are not refused, nor do they obey the mask.",
        "Where the model runs without the guidance that it usually has, add this to the configuration: "
        '"enable_separate_cfg": false.',
        "Run this file with bash, followed by xDiT's options for the model and the prompt. xDiT needs cache-dit.",
    ]
    return _XDIT.format(
        head=_head(mask, file, "xDiT 0.7.0", notes),
        options="\n".join(f"    --{name} {value} \\" for name, value in options.items()),
    )


def to_sglang(mask: Mask, file: str) -> str:
    """Shell that sets what SGLang 0.5.23 does for every request, and in a comment the same for one request.

    `file` is the mask's, for the comments.

    >>> print(to_sglang(Mask(mask_of((0, 1, 4), 5)), "mask.json"))  # doctest: +SKIP
    """
    computed, reused = run_lengths(mask.steps)
    # An empty list would count as none given: SGLang would choose the steps itself.
    reused = reused or [0]
    variables = {
        "ENABLED": "true",
        "SCM_COMPUTE_BINS": ",".join(map(str, computed)),
        "SCM_CACHE_BINS": ",".join(map(str, reused)),
        "SCM_POLICY": "static",
        "FN": 1,
        "BN": 0,
        "TAYLORSEER": "false",
        "DMD": "false",
    }
    params = {
        "scm_compute_bins": computed,
        "scm_cache_bins": reused,
        "scm_policy": "static",
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "enable_taylorseer": False,
        "enable_dmd": False,
    }
    request = {"num_inference_steps": mask.num_steps, "enable_cache_dit": True, "cache_dit_params": params}
    notes = [
        *_lost(mask),
        f'Only for requests with "num_inference_steps": {mask.num_steps}. More fail, fewer do not obey the mask.',
    ]
    return _SGLANG.format(
        head=_head(mask, file, "SGLang 0.5.23", notes),
        exports="\n".join(f"export SGLANG_CACHE_DIT_{name}={value}" for name, value in variables.items()),
        request=json.dumps(request),
    )


def to_diffusers(mask: Mask, file: str) -> str:
    """Python that enables the mask in `file` on a pipeline `pipe` of diffusers with this library.

    >>> print(to_diffusers(Mask(mask_of((0, 1, 4), 5)), "mask.json"))  # doctest: +SKIP
    """
    notes = ["diffusers has no cache that takes a mask: this library's hook obeys it, with its weights."]
    if mask.kept == "residual":
        notes.append("The mask is of residuals of all blocks; on a pipeline what the transformer returns is reused.")
    notes.append(f"Only for runs of {mask.num_steps} steps: others are refused.")
    return _DIFFUSERS.format(
        head=_head(mask, file, "diffusers", notes),
        file=json.dumps(file, ensure_ascii=False),
        num_steps=mask.num_steps,
    )


# By the name of the engine: a function of a mask and the name of its file.
EXPORTS: dict[str, Callable[[Mask, str], str]] = {
    "cache-dit": to_cache_dit,
    "xdit": to_xdit,
    "sglang": to_sglang,
    "diffusers": to_diffusers,
}


def _bits(mask: Mask) -> list[int]:
    """The steps as cache-dit has them: 1 computed, 0 reused."""
    return [int(computed) for computed in mask.steps]


def _lost(mask: Mask) -> list[str]:
    """What an engine that runs on cache-dit cannot carry of a mask."""
    if all(mask.steps):
        return ["Every step is computed: nothing is reused."]
    lost = ["The first block, of every list of blocks, runs on reused steps too.", _KEPT[mask.kept]]
    if _is_weighted(mask):
        lost.append(
            f"The mask's weights (rule {mask.rule:.60}) are lost: the last residual is reused as it is. cache-dit's "
            "calibrators (TaylorSeer, DMD, FoCa) have weights of their own and take no others."
        )
    return [
        *lost,
        "A model with two experts (Wan2.2) does not obey the mask: the steps of each expert are counted from 0.",
        "Nothing checks that model, noise levels and arithmetic are the mask's.",
    ]


def _is_weighted(mask: Mask) -> bool:
    """Whether any reused step is more than the newest kept tensor as it is."""
    return mask.rule != "hold" if mask.weights is None else any(row not in ((), (1.0,)) for row in mask.weights)


def _head(mask: Mask, file: str, engine: str, notes: Iterable[str]) -> str:
    model = f", made for {mask.target.model}" if mask.target.model else ""
    first = f"{file} for {engine}: {mask.budget} of {mask.num_steps} steps are computed{model}."
    return "\n".join([_comment(first), *(_comment(note, "- ") for note in notes)])


def _comment(text: str, bullet: str = "") -> str:
    """Text as lines of comments of Python and of shell, whatever line breaks are in it."""
    begin, after = f"# {bullet}", "# " + " " * len(bullet)
    words = " ".join(text.split())
    whole_words = {"break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.wrap(words, _WIDTH, initial_indent=begin, subsequent_indent=after, **whole_words))
