"""Start upstream's video autoencoder as a linear codec that is fitted to data, from which training goes on.

With upstream's own start the demo's autoencoder does not learn on a CPU: latents of a still video are the same in the
first and in later frames, but the decoder's temporal upsampling reads its channels in another order for the first
frame; until the later layers tell the two apart, gradients pull both towards one constant colour. Principal components
(encoder) and least squares (decoder), layer by layer on real activations, start close to the best linear codec, with
every residual branch at zero.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import (
    AttnBlock,
    AutoencoderKLConv3D,
    CausalConv3d,
    Decoder,
    Encoder,
    ResnetBlock,
    Upsample,
)
from torch import Tensor, nn

# A constant feature that dominates the length by which the last norms divide, so that these stay nearly linear.
CONSTANT = 4.0
# log variance of the latents' noise.
LOG_VARIANCE = -5.0
RIDGE = 1e-5
# Videos that a fit holds at a time.
BATCH = 8


def _set_centre(conv: CausalConv3d, matrix: Tensor, bias: Tensor) -> None:
    """Make a causal convolution the pointwise map x -> matrix x + bias."""
    conv.conv.weight.zero_()
    middle = conv.conv.kernel_size[1] // 2
    conv.conv.weight[:, :, -1, middle, middle] = matrix
    conv.conv.bias.copy_(bias)


def _neighbourhoods(conv: CausalConv3d, inputs: Tensor) -> Tensor:
    """What a causal convolution sees at each position of its input, and a 1: (B, T, H, W, channels * 27 + 1)."""
    padded = F.pad(inputs, conv.time_causal_padding, mode=conv.pad_mode)
    for dim, size in zip((2, 3, 4), conv.conv.kernel_size, strict=True):
        padded = padded.unfold(dim, size, 1)
    seen = rearrange(padded, "b c t h w i j k -> b t h w (c i j k)")
    return F.pad(seen, (0, 1), value=1.0)


class _LeastSquares:
    """Ridge regression, accumulated over batches in float64."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.moment: Tensor | float = 0.0

    def add(self, seen: Tensor, wanted: Tensor) -> None:
        seen, wanted = seen.flatten(0, -2), wanted.flatten(0, -2)
        self.gram = self.gram + (seen.T @ seen).double()
        self.moment = self.moment + (seen.T @ wanted).double()

    def __add__(self, other: "_LeastSquares") -> "_LeastSquares":
        total = _LeastSquares()
        total.gram, total.moment = self.gram + other.gram, self.moment + other.moment
        return total

    def solve(self) -> Tensor:
        """Coefficients (features, outputs)."""
        ridge = RIDGE * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        return torch.linalg.solve(self.gram + ridge, self.moment).float()


def _set_conv(conv: CausalConv3d, coefficients: Tensor, rows: Tensor | slice = slice(None)) -> None:
    conv.conv.weight[rows] = coefficients[:-1].T.reshape(-1, *conv.conv.weight.shape[1:])
    conv.conv.bias[rows] = coefficients[-1]


def _principal_components(features: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), first principal directions (count, C) and deviations (count,) of features (B, C, T, H, W)."""
    rows = features.transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(rows))
    return rows.mean(dim=1), vectors[:, -count:].flip(1).T, values[-count:].flip(0).clamp(min=0).sqrt()


def _silence_branches(model: nn.Module) -> None:
    """Make every residual branch add nothing, so that the blocks begin as identities."""
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.conv.weight)
            nn.init.zeros_(module.conv2.conv.bias)
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)


def _features(encoder: Encoder, videos: Tensor) -> list[Tensor]:
    """The encoder's activations from full resolution down, each (B, C, T, H, W)."""
    stages = [encoder.conv_in(videos)]
    for level in encoder.down:
        if hasattr(level, "downsample"):
            stages.append(level.downsample(stages[-1]))
    return stages


def _start_encoder(encoder: Encoder, videos: Tensor) -> None:
    """Principal components at every level, and at the end those of the whole, scaled to unit mean variance."""
    colours = torch.eye(3)
    width = encoder.conv_in.conv.out_channels
    spread = torch.zeros(width, 3)
    # Both signs of each colour: silu(u) - silu(-u) = u, so that the decoder's last layer can read them exactly.
    spread[:6] = torch.cat([colours, -colours])
    constant = torch.zeros(width)
    constant[6] = CONSTANT
    _set_centre(encoder.conv_in, spread, constant)

    levels = [level.downsample for level in encoder.down if hasattr(level, "downsample")]
    features = encoder.conv_in(videos)
    for layer in levels:
        conv = layer.conv.conv
        count = conv.out_channels - (layer is levels[-1])
        mean, directions, _ = _principal_components(features, count)
        matrix, bias = torch.zeros(conv.out_channels, conv.in_channels), torch.zeros(conv.out_channels)
        matrix[:count], bias[:count] = directions, -directions @ mean
        bias[count:] = CONSTANT
        # The layer adds its input, averaged over groups, to its convolution.
        per_position = layer.group_size
        shortcut = torch.eye(conv.in_channels).unflatten(0, (-1, per_position)).mean(dim=1)
        _set_centre(layer.conv, matrix - shortcut[: conv.out_channels], bias)
        features = layer(features)
    _start_moments(encoder, features)


def _start_moments(encoder: Encoder, features: Tensor) -> None:
    """The encoder's last layer: principal components as means, a constant log variance."""
    channels = encoder.z_channels
    mean, directions, deviations = _principal_components(features, channels)
    # Half whitened: fine detail is neither drowned in noise at once nor as loud as the coarse.
    directions = directions / deviations.clamp(min=1e-3 * deviations[0])[:, None].sqrt()
    latents = torch.einsum("zc,bcthw->bzthw", directions, features - mean[None, :, None, None, None])
    latents = latents / latents.std()
    wanted = torch.cat([latents, torch.full_like(latents, LOG_VARIANCE)], dim=1)
    activated = F.silu(encoder.norm_out(features))
    group = features.shape[1] // wanted.shape[1]
    shortcut = features.unflatten(1, (-1, group)).mean(dim=2)
    fit = _LeastSquares()
    fit.add(_neighbourhoods(encoder.conv_out, activated), rearrange(wanted - shortcut, "b c t h w -> b t h w c"))
    _set_conv(encoder.conv_out, fit.solve())


def _rows(layer: Upsample, fine: Tensor) -> Tensor:
    """Features of an upsampled resolution in the order of the layer's convolution: (B, T, H, W, positions * C)."""
    a = 2 if layer.add_temporal_upsample else 1
    return rearrange(fine, "b c (t a) (h i) (w j) -> b t h w (a i j c)", a=a, i=2, j=2)


def _start_upsampling(layer: Upsample, inputs: Tensor, wanted: Tensor) -> None:
    """Fit an upsampling layer to `wanted`; with time its rows of even third position serve the first frame too."""
    conv = layer.conv
    conv.conv.weight.zero_()
    conv.conv.bias.zero_()
    first, later = _LeastSquares(), _LeastSquares()
    for some_inputs, some_wanted in zip(inputs.split(BATCH), wanted.split(BATCH), strict=True):
        rest = some_wanted - layer(some_inputs)
        seen = _neighbourhoods(conv, some_inputs)
        if layer.add_temporal_upsample:
            first.add(seen[:, :1], rearrange(rest[:, :, :1], "b c t (h i) (w j) -> b t h w (i j c)", i=2, j=2))
            seen, rest = seen[:, 1:], rest[:, :, 1:]
        later.add(seen, _rows(layer, rest))
    _set_conv(conv, later.solve())
    if layer.add_temporal_upsample:
        shared = torch.arange(conv.conv.out_channels) // wanted.shape[1] % 2 == 0
        later.moment = later.moment[:, shared]
        _set_conv(conv, (later + first).solve(), shared)


def _start_decoder(decoder: Decoder, latents: Tensor, stages: list[Tensor], videos: Tensor) -> None:
    """Least squares to the encoder's activations of the same resolution, and at the end to the pixels."""
    nn.init.zeros_(decoder.conv_in.conv.weight)
    nn.init.zeros_(decoder.conv_in.conv.bias)
    features = latents.repeat_interleave(decoder.conv_in.conv.out_channels // latents.shape[1], dim=1)
    for level, wanted in zip(decoder.up, reversed(stages[:-1]), strict=False):
        _start_upsampling(level.upsample, features, wanted[: len(features)])
        # Four times as many positions a video at the next level: a quarter of the videos will do.
        features = level.upsample(features[: max(BATCH, len(features) // 4)])
    activated, videos = F.silu(decoder.norm_out(features)), videos[: len(features)]
    fit = _LeastSquares()
    for some, pixels in zip(activated.split(1), videos.split(1), strict=True):
        fit.add(_neighbourhoods(decoder.conv_out, some), rearrange(pixels, "b c t h w -> b t h w c"))
    _set_conv(decoder.conv_out, fit.solve())


@torch.no_grad()
def start_as_linear_codec(
    vae: AutoencoderKLConv3D, videos: Tensor, noise: Callable[[torch.Size], Tensor]
) -> AutoencoderKLConv3D:
    """Set the weights of an autoencoder without residual blocks in its encoder's levels, in place.

    Args:
        vae: upstream's class with `layers_per_block` 0 and a last width of twice the latent channels.
        videos: what to fit, (B, 3, F, H, W) in [-1, 1]; some hundreds, of training size.
        noise: standard normal values of a shape.
    """
    _silence_branches(vae)
    _start_encoder(vae.encoder, videos)
    stages = _features(vae.encoder, videos)
    posterior = vae.encode(videos).latent_dist
    latents = posterior.mean + posterior.std * noise(posterior.mean.shape)
    _start_decoder(vae.decoder, latents, stages, videos)
    return vae
