"""Memory on the device in each stage, counted on the meta device: no weight is read, no number is computed.

Every tensor that an operation creates counts from then until nothing refers to it; the peak of their sum is what a caching allocator needs
at least. Attention counts as the fused kernels allocate: the output, a float32 for each row of the softmax, a mask in the dtype of the
queries; never the scores. Convolutions with channels-last weights copy an input of another layout. The work space of cuDNN and cuBLAS and
the CUDA context are not counted.

Shapes: B rows, L queries, H heads, D width of a head.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from featurize.cost.stage_cost import WholePrompts, decoder_of, denoiser_of, first_prediction
from featurize.generate.acceleration import memory_format
from featurize.generate.decoders import DecoderFiles, in_unit_range
from featurize.generate.families.family import Parts, PromptEmbeddings
from featurize.generate.generators import Generator
from featurize.generate.load_part import model_class, text_config
from featurize.generate.parts import without_cache

# From this width of a head on, the fused kernel adds up its output in float32 beside it.
_WIDE_HEAD = 128


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of the tensors that were created inside the block and are still referred to.

    Attributes:
        now_bytes, peak_bytes: of all of them, now and at most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes: int = 0
        self.peak_bytes: int = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, is_new=False)
        result, copied_bytes = func(*args, **(kwargs or {})), 0
        if func is torch.ops.aten.convolution.default and _is_channels_last(args[1]):
            # As cuDNN does, which copies an input of another layout; the meta device keeps that of the input.
            copied_bytes = 0 if _is_channels_last(args[0]) else args[0].nbytes
            result = torch.empty_like(result, memory_format=torch.channels_last)
        for tensor in tree_leaves(result):
            self._see(tensor, is_new=True)
        self.peak_bytes = max(self.peak_bytes, self.now_bytes + copied_bytes)
        return result

    def _see(self, tensor: Any, *, is_new: bool) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if is_new else 0
        self.now_bytes += size
        self._known[key] = weakref.ref(storage, partial(self._forget, key, size))

    def _forget(self, key: int, size_bytes: int, _: Any) -> None:
        del self._known[key]
        self.now_bytes -= size_bytes


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


class _FusedAttention(TorchFunctionMode):
    """Attention of a GPU: what its kernels allocate, without the scores, which the meta device would hold."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query_BHLD, value_BHLD = args[0] if args else kwargs["query"], args[2] if len(args) > 2 else kwargs["value"]
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        held = [] if mask is None else [torch.empty_like(mask, dtype=query_BHLD.dtype)]
        output_BHLD = query_BHLD.new_empty((*query_BHLD.shape[:-1], value_BHLD.shape[-1]))
        held.append(query_BHLD.new_empty(query_BHLD.shape[:-1], dtype=torch.float32))
        if value_BHLD.shape[-1] > _WIDE_HEAD and output_BHLD.dtype != torch.float32:
            held.append(torch.empty_like(output_BHLD, dtype=torch.float32))
        return output_BHLD


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that are alive at once of the tensors that a call creates, its result included."""
    # Not in inference mode, in which this mode would see operations that are made of others as one.
    with torch.no_grad(), LiveBytes() as live, _FusedAttention():
        result = call()
        del result
    peak: int = live.peak_bytes
    return peak


@dataclass(frozen=True, kw_only=True)
class Part:
    """A model on the meta device, and its run.

    Attributes:
        model: in the dtype that it is kept in.
        run: with so many images.
    """

    model: Any
    run: Callable[[int], Any]

    @property
    def weight_bytes(self) -> int:
        """Size of its weights and buffers."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def peak_bytes(self, images: int) -> int:
        """Return what it takes beside the weights for so many images at once."""
        return peak_bytes(lambda: self.run(images))


def denoiser_part(generator: Generator, dtype: torch.dtype, device_type: str) -> Part:
    """Return the denoiser and one step of it, guidance included, with prompts as long as it reads.

    Args:
        generator: the folder and settings.
        dtype: that was asked for; some families keep parts in another.
        device_type: where it will run, which decides the layout of the weights.
    """
    family = generator.family
    model = _as_kept(denoiser_of(family), family.dtypes(dtype).get(family.denoiser, dtype), device_type)
    copies = 1 + (family.guidance_kind(generator.settings.guidance) == "cfg")
    return Part(model=model, run=lambda images: first_prediction(generator, model, images=images, copies=copies))


def decoder_part(generator: Generator, dtype: torch.dtype, device_type: str, *, decoder: DecoderFiles | None = None) -> Part:
    """Return the decoder, or the one in its place, and its run, up to float32 images in [0, 1]. Other arguments are those of
    ``denoiser_part``."""
    own = dtype if decoder is not None and not decoder.halves else generator.family.dtypes(dtype).get("vae", dtype)
    model = _as_kept(decoder_of(generator.family, decoder), own, device_type)

    def run(images: int) -> torch.Tensor:
        latents_BChw = torch.zeros((images, *generator.latent_shape), dtype=own, device="meta")
        return in_unit_range(generator.family.decode(model, latents_BChw))

    return Part(model=model, run=run)


def _as_kept(model: Any, dtype: torch.dtype, device_type: str) -> Any:
    """Return a model in a dtype, except for the parts that its class keeps in float32, with weights in the layout of a device."""
    has_3d = any(weight.ndim == 5 for weight in model.parameters())
    layout = {} if has_3d else {"memory_format": getattr(torch, memory_format(device_type))}
    torch.nn.Module.to(model, dtype=dtype, **layout)  # diffusers' own warns of parts that are converted here as from_pretrained() does
    kept = model._keep_in_fp32_modules or ()
    for name, weight in model.named_parameters():
        if any(part in name for part in kept):
            weight.data = weight.data.float()
    return model


def text_parts(generator: Generator, dtype: torch.dtype, tokenizers: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the text encoders, which are on the device together, the first with the run of all: ``Family.encode``.

    Args:
        generator: the folder and settings.
        dtype: that was asked for; some families keep parts in another.
        tokenizers: by folder.
    """
    family, device = generator.family, torch.device("meta")
    encoders = {}
    for _, name in family.text_parts:
        with device:
            encoders[name] = model_class(family, name)(text_config(family, name)).eval().requires_grad_(False)
        torch.nn.Module.to(encoders[name], dtype=family.dtypes(dtype).get(name, dtype))
        without_cache(encoders[name])
    parts = Parts(denoiser=None, vae=None, scheduler=None, tokenizers=tokenizers, text_encoders=encoders, device=device)

    def run(prompts: int) -> PromptEmbeddings:
        with WholePrompts(family.tokens_read):
            return family.encode(parts, ["a " * family.tokens_read] * prompts)

    return tuple(Part(model=encoder, run=run) for encoder in encoders.values())
