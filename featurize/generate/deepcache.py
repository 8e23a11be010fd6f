"""DeepCache: most denoising steps run the UNet's outermost layers only, and reuse the deeper features of an earlier step.

Source: Ma, Fang & Wang 2023, "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858, with the uniform schedule: of every N
steps the first is whole. The UNet's forward is not rewritten: wrappers around deep modules skip them. There are two cuts:

* ``level``: the others compute conv_in, the first down block, the last up block and conv_out; from below comes the input of the last up
  block of the last whole step.
* ``layer``: they compute conv_in, the last layer of the last up block and conv_out; from below comes that layer's input. It is the cut that
  the authors' package takes by default (``cache_branch_id=0``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from featurize.options import DeepCacheCut
from lugpi_core.errors import InputError

# Up blocks that read one residual a layer, and those of them whose layers have attention.
_WITH_ATTENTION = ("CrossAttnUpBlock2D", "AttnUpBlock2D", "SimpleCrossAttnUpBlock2D")
_LAYERED = ("UpBlock2D", "ResnetUpsampleBlock2D", *_WITH_ATTENTION)


def whole_steps(rows: Sequence[int], every: int) -> tuple[bool, ...]:
    """Return which evaluations of the denoiser are whole: of N the first, and each that has more rows than the last whole one.

    Args:
        rows: of each evaluation; guidance doubles them.
        every: N.
    """
    return tuple(map(_Schedule(every).is_whole, rows))


class _Schedule:
    """Decides which forwards are whole, one after another."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._since, self._rows = 0, 0

    def is_whole(self, rows: int) -> bool:
        """Whether the next forward is, which has so many rows."""
        whole = self._since == 0 or self._since >= self._every or rows > self._rows
        self._rows, self._since = (rows, 1) if whole else (self._rows, self._since + 1)
        return whole


class DeepReuse:
    """Makes a UNet2DConditionModel reuse its deep features, for as long as it lives.

    Off until ``start``: the UNet computes the same bits as before. The names of the UNet's parameters change, so load the weights first.

    With the cut ``level``, a reuse step costs 46.2 % of a whole forward of Stable Diffusion 2 at 768 px, 38.2 % at 512 px: the outermost
    level has the attention over all latent cells. With ``layer`` it is 9.4 % and 7.9 % (floating-point operations of matrix products and
    convolutions, counted by torch's FlopCounterMode).

    Between ``start`` and ``stop`` one tensor is held: the input of the last up block, or of its last layer; for Stable Diffusion
    [B, 640, h, w] or [B, 320, h, w] in the dtype of the UNet, where B includes guidance's second half. After ``stop`` nothing is held.
    """

    def __init__(self, unet: Any, every: int, cut: DeepCacheCut = "level") -> None:
        """Put the wrappers into ``unet``, in place.

        Args:
            unet: a UNet2DConditionModel. Its forwards are counted from here on: each is one step, whatever the scheduler. If a step has
                fewer rows than the last whole one, they are its last rows: those with the prompt.
            every: N; of N forwards after ``start`` the first is whole. At least 2.
            cut: what the others compute.

        Raises:
            InputError: the UNet has nothing deeper, or another kind of last up block.
        """
        assert every >= 2, every
        self._state = state = _State(every)
        if cut == "layer":
            _check_layers(unet)
            last = unet.up_blocks[-1]
            has_attention = unet.config.up_block_types[-1] in _WITH_ATTENTION
            for number in range(len(last.resnets) - 1):
                keeps = number == len(last.resnets) - 2
                last.resnets[number] = _DeepLayer(last.resnets[number], state, keeps=keeps and not has_attention)
                if has_attention:
                    last.attentions[number] = _DeepLayer(last.attentions[number], state, keeps=keeps)
        elif len(unet.up_blocks) < 2:
            raise InputError(got="a UNet of one level", expected="at least two levels", do="use --deepcache 1, or --deepcache-cut layer")
        for level in range(0 if cut == "layer" else 1, len(unet.down_blocks)):
            unet.down_blocks[level] = _DeepDown(unet.down_blocks[level], state)
        if unet.mid_block is not None:
            unet.mid_block = _DeepMid(unet.mid_block, state)
        last_deep = len(unet.up_blocks) - 2
        for level in range(last_deep + 1):
            unet.up_blocks[level] = _DeepUp(unet.up_blocks[level], state, keeps=cut == "level" and level == last_deep)
        # Counted outside the forward, which reads only ``whole``: compiled, it then has two variants, not one for each count.
        unet.register_forward_pre_hook(state.next_forward, with_kwargs=True)

    def start(self) -> None:
        """Begin a batch: forget the features of an earlier one; the next forward is whole."""
        self._state.start(counting=True)

    def stop(self) -> None:
        """End a batch: forget the features. Until ``start`` every forward is whole and nothing is kept."""
        self._state.start(counting=False)


def _check_layers(unet: Any) -> None:
    kind = unet.config.up_block_types[-1]
    if kind not in _LAYERED:
        raise InputError(
            got=f"--deepcache-cut layer for a UNet whose last up block is a {kind}",
            expected=f"one of {', '.join(_LAYERED)}",
            do="use --deepcache-cut level",
        )


class _State:
    """What the wrappers share: whether this forward is whole, and what was kept of the last whole one."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.start(counting=False)

    def start(self, *, counting: bool) -> None:
        self.counting = counting
        self.whole = True
        self.deep: torch.Tensor | None = None
        self._schedule = _Schedule(self.every)

    def next_forward(self, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.whole = not self.counting or self._schedule.is_whole(len(given[0] if given else named["sample"]))

    def kept(self, rows: int) -> torch.Tensor:
        """Return what was kept, of the last rows."""
        assert self.deep is not None
        return self.deep if len(self.deep) == rows else self.deep[-rows:]


class _Deep(nn.Module):
    """A module of the UNet that is skipped in reuse steps. Skipped ones hand on no channels at all, so that nothing is copied."""

    def __init__(self, block: Any, state: _State, *, keeps: bool = False) -> None:
        super().__init__()
        self.block = block
        self.has_cross_attention = getattr(block, "has_cross_attention", False)  # as in the UNet's forward
        self._state, self._keeps = state, keeps

    @property
    def resnets(self) -> Any:
        """Those of the block; the UNet counts them to share out the residuals among the up blocks."""
        return self.block.resnets

    def keep(self, sample: torch.Tensor) -> None:
        """Keep a whole step's output, if this is the module whose output is reused."""
        if self._keeps and self._state.counting:
            self._state.deep = sample

    def in_place_of(self, sample: torch.Tensor) -> torch.Tensor:
        """Return what a reuse step hands on."""
        return self._state.kept(len(sample)) if self._keeps else sample[:, :0]


class _DeepDown(_Deep):
    _residuals = 0

    def forward(self, hidden_states: torch.Tensor, **rest: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if self._state.whole:
            sample, residuals = self.block(hidden_states=hidden_states, **rest)
            self._residuals = len(residuals)
            return sample, residuals
        # Never read: as many as the UNet hands to the deep up blocks.
        return hidden_states[:, :0], (hidden_states[:, :0],) * self._residuals


class _DeepMid(_Deep):
    def forward(self, hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return self.block(hidden_states, *rest, **named) if self._state.whole else self.in_place_of(hidden_states)


class _DeepUp(_Deep):
    def forward(self, hidden_states: torch.Tensor, **rest: Any) -> Any:
        if not self._state.whole:
            return self.in_place_of(hidden_states)
        sample = self.block(hidden_states=hidden_states, **rest)
        self.keep(sample)
        return sample


class _DeepLayer(_Deep):
    """A resnet or transformer of the last up block, the last of each excepted."""

    def forward(self, hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
        is_tuple = named.get("return_dict") is False
        if not self._state.whole:
            sample = self.in_place_of(hidden_states)
            return (sample,) if is_tuple else sample
        output = self.block(hidden_states, *rest, **named)
        self.keep(output[0] if is_tuple else output)
        return output
