"""DeepCache: most denoising steps run the UNet's outermost level only, and take what lies deeper from an earlier step.

Source: Ma, Fang & Wang 2023, "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858, with the uniform schedule: of every N
steps the first is whole. The steps between compute conv_in, the first down block, the last up block and conv_out; from deeper comes the
input of the last up block of the last whole step. Nothing of the forward is written anew: the deep blocks stand in wrappers that skip them.
"""

from typing import Any

import torch
from torch import nn

from lugpi_core.errors import InputError


class DeepReuse:
    """Makes a UNet2DConditionModel reuse its deep features. Final.

    Off until ``start``: the UNet then computes what it computed before, bit for bit. It changes the names of the UNet's parameters, so
    load first.

    A reuse step costs 46.2 % of a whole forward of Stable Diffusion 2 at 768 px, 38.2 % at 512 px: the outermost level has the attention
    over all latent cells (floating-point operations of matrix products and convolutions, counted by torch's FlopCounterMode).

    Between ``start`` and ``stop`` one tensor is held: the input of the last up block, which for Stable Diffusion is [B, 640, h, w] in the
    dtype of the UNet, B counted with guidance's second half. After ``stop`` nothing is.
    """

    def __init__(self, unet: Any, every: int) -> None:
        """Put the wrappers into ``unet``, in place.

        Args:
            unet: a UNet2DConditionModel, whose forwards are counted from here on: one is one step, whatever the scheduler.
            every: N; of N forwards after ``start`` the first is whole. At least 2.

        Raises:
            InputError: the UNet has one level only, so there is nothing deeper.
        """
        assert every >= 2, every
        if len(unet.up_blocks) < 2:
            raise InputError(
                got="a UNet of one level", expected="two levels at least, the deeper of which to reuse", do="draw without reuse"
            )
        self._state = state = _State(every)
        for level in range(1, len(unet.down_blocks)):
            unet.down_blocks[level] = _DeepDown(unet.down_blocks[level], state)
        unet.mid_block = _DeepMid(unet.mid_block, state)
        last_deep = len(unet.up_blocks) - 2
        for level in range(last_deep + 1):
            unet.up_blocks[level] = _DeepUp(unet.up_blocks[level], state, keeps=level == last_deep)
        # Counted outside the forward, which reads ``whole`` alone: compiled, it then has two variants, and not one for each number.
        unet.register_forward_pre_hook(state.next_forward)

    def start(self) -> None:
        """Begin a batch: what an earlier one left is forgotten, and the next forward is whole."""
        self._state.start(counting=True)

    def stop(self) -> None:
        """End a batch: forget what is held; from here on every forward is whole and nothing is kept, until ``start``."""
        self._state.start(counting=False)


class _State:
    """What the wrappers share: whether this forward is whole, and what the last whole one gave to the last up block."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.start(counting=False)

    def start(self, *, counting: bool) -> None:
        self.counting = counting
        self.whole = True
        self.deep: torch.Tensor | None = None
        self._forwards = 0

    def next_forward(self, *_: Any) -> None:
        self.whole = not self.counting or self._forwards % self.every == 0
        self._forwards += 1


class _Deep(nn.Module):
    """A block of the UNet that rests in reuse steps, with what the UNet's forward asks of a block."""

    def __init__(self, block: Any, state: _State) -> None:
        super().__init__()
        self.block = block
        self.has_cross_attention = getattr(block, "has_cross_attention", False)  # the UNet's forward asks in the same way
        self._state = state

    @property
    def resnets(self) -> Any:
        """Of the block; the UNet counts them, for each up block's share of the residuals."""
        return self.block.resnets


class _DeepDown(_Deep):
    _residuals = 0

    def forward(self, hidden_states: torch.Tensor, **rest: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if self._state.whole:
            sample, residuals = self.block(hidden_states=hidden_states, **rest)
            self._residuals = len(residuals)
            return sample, residuals
        # Nobody reads them: as many as the UNet counts off for the deep up blocks.
        return hidden_states, (hidden_states,) * self._residuals


class _DeepMid(_Deep):
    def forward(self, hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return self.block(hidden_states, *rest, **named) if self._state.whole else hidden_states


class _DeepUp(_Deep):
    def __init__(self, block: Any, state: _State, *, keeps: bool) -> None:
        super().__init__(block, state)
        self._keeps = keeps

    def forward(self, hidden_states: torch.Tensor, **rest: Any) -> Any:
        if self._state.whole:
            sample = self.block(hidden_states=hidden_states, **rest)
            if self._keeps and self._state.counting:
                self._state.deep = sample
            return sample
        return self._state.deep if self._keeps else hidden_states
