#!/usr/bin/env bash
# Guessed: load_lora_weights(FILE), fuse_lora(), unload_lora_weights() leave the whole LoRA in the weights of any pipeline, as they do for
# Stable Diffusion and Stable Diffusion 3: a LoRA with a part for CLIP changes CLIP.
# True:    FluxPipeline.fuse_lora() fuses the transformer alone, though load_lora_weights() gave CLIP its part, too; unload_lora_weights() then
#          throws that part away. No error and no warning; CLIP is what it was. It is the default of `components`: transformer alone for
#          FLUX.1, and all parts that take a LoRA for Stable Diffusion 1, 2, XL and 3. fuse_lora(components=["transformer", "text_encoder"])
#          fuses both.
# Seen:    FLUX.1:                    4 weights of the transformer changed, 0 weights of the text_encoder changed
#          FLUX.1, components named:  4 weights of the transformer changed, 4 weights of the text_encoder changed
#          Stable Diffusion 3:        2 weights of the transformer changed, 4 weights of the text_encoder changed
# With:    diffusers==0.42.1, transformers==5.23.0, peft==0.21.2, torch==2.13.0 (CPU build), numpy==2.4.6. Seen on 2026-11-29.
# Who meets it: whoever fuses a FLUX.1 LoRA of a trainer that trains CLIP, too (kohya's, ai-toolkit's, diffusers' own
# train_dreambooth_lora_flux.py --train_text_encoder), to save the fused pipeline or to draw without the adapter's cost.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
# torch==2.13.0: here the CPU build.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
cd "$work"
cat > run.py <<'PY'
import warnings

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

warnings.filterwarnings("ignore")
small = CLIPTextConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9, projection_dim=8,
    bos_token_id=0, eos_token_id=1,
)


def flux():
    transformer = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )
    none = dict.fromkeys(("scheduler", "vae", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(transformer=transformer, text_encoder=CLIPTextModel(small), **none)


def stable_diffusion_3():
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=16, pooled_projection_dim=8,
    )
    none = dict.fromkeys(
        ("scheduler", "vae", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    return StableDiffusion3Pipeline(transformer=transformer, text_encoder=CLIPTextModelWithProjection(small), **none)


def changed(make, **how):
    """Return which parts differ after a LoRA for both was loaded, fused and unloaded."""
    torch.manual_seed(0)
    trained = make()
    layers = {}
    for part, targets in (("transformer", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        model = getattr(trained, part)
        model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
    type(trained).save_lora_weights(".", weight_name=f"{make.__name__}.safetensors", **layers)
    pipe = make()
    parts = {name: getattr(pipe, name) for name in ("transformer", "text_encoder")}
    before = {name: {key: tensor.clone() for key, tensor in model.state_dict().items()} for name, model in parts.items()}
    pipe.load_lora_weights(".", weight_name=f"{make.__name__}.safetensors")
    pipe.fuse_lora(**how)
    pipe.unload_lora_weights()
    found = {}
    for name, model in parts.items():
        after = model.state_dict()
        assert after.keys() == before[name].keys()
        found[name] = sum(not torch.equal(after[key], tensor) for key, tensor in before[name].items())
    return found


plain, other = changed(flux), changed(stable_diffusion_3)
both = changed(flux, components=["transformer", "text_encoder"])
for title, found in (("FLUX.1:", plain), ("FLUX.1, components named:", both), ("Stable Diffusion 3:", other)):
    print(f"{title:26}", ", ".join(f"{count} weights of the {name} changed" for name, count in found.items()))
assert plain["transformer"] > 0 and plain["text_encoder"] == 0, plain
assert both["text_encoder"] == 4 and other["text_encoder"] == 4, (both, other)
PY
"$work/venv/bin/python" run.py
