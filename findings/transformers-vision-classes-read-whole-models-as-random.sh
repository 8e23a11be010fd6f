#!/usr/bin/env bash
# Guessed (put into words after the first run): AltCLIPVisionModel.from_pretrained(a folder of AltCLIPModel) gives that model's vision tower, as CLIPVisionModel
# and SiglipVisionModel do, and as the examples in the docstrings of AltCLIPVisionModel, AlignVisionModel and GitVisionModel do it.
# True: for six of these nine models of images and texts, the vision class finds none of its weights in the whole model's folder
# (AltCLIP: 7 of 39). It returns a random tower; no exception, only a report in the log, at level WARNING.
# The whole model reads the same folder completely: the names of the weights lack "vision_model." in the class and have it
# in the file, and the base prefix that transformers would strip is "altclip", "align", "blip", "aimv2", "git", "flava.image_model".
# AltCLIP is its own case: save_pretrained writes the vision layers as encoder.layer.0, the class calls them encoder.layers.0.
# Versions: transformers==5.23.0, torch==2.13.0 (CPU build), numpy==2.4.6. Date: 2026-11-29.
# Who meets it: whoever takes only the image encoder of such a model, with the log at ERROR as most programs set it: features of
# noise, of the right shape. Two ways out: take the tower of the whole model, or (AIMv2, BLIP, ALIGN)
# from_pretrained(..., key_mapping={"^vision_model\\.": ""}); and look at the missing keys of output_loading_info=True.
# Output seen:
#   CLIPVisionModel            39 of  39 parameters as saved; the whole model misses 0
#   SiglipVisionModel          48 of  48 parameters as saved; the whole model misses 0
#   ChineseCLIPVisionModel     39 of  39 parameters as saved; the whole model misses 0
#   AltCLIPVisionModel          7 of  39 parameters as saved; the whole model misses 0
#   Aimv2VisionModel            0 of  28 parameters as saved; the whole model misses 0
#   BlipVisionModel             0 of  30 parameters as saved; the whole model misses 0
#   AlignVisionModel            0 of  91 parameters as saved; the whole model misses 0
#   GitVisionModel              0 of  39 parameters as saved; the whole model misses 0
#   FlavaImageModel             0 of  41 parameters as saved; the whole model misses 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
# torch==2.13.0: here the CPU build.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.23.0 pillow
cat > "$work/run.py" <<'PY'
import sys

import torch
import transformers as hf

hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()
folder = sys.argv[1]
blocks = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
vision = {**blocks, "image_size": 32, "patch_size": 8}
text = {**blocks, "num_hidden_layers": 1, "vocab_size": 64, "eos_token_id": 2}
both = {"vision_config": vision, "text_config": text, "projection_dim": 16}
convolutions = {"image_size": 64, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256}
MODELS = (
    ("CLIP", "CLIPVisionModel", "vision_model", both),
    ("Siglip", "SiglipVisionModel", "vision_model", both),
    ("ChineseCLIP", "ChineseCLIPVisionModel", "vision_model", both),
    ("AltCLIP", "AltCLIPVisionModel", "vision_model", both),
    ("Aimv2", "Aimv2VisionModel", "vision_model", both),
    ("Blip", "BlipVisionModel", "vision_model", both),
    ("Align", "AlignVisionModel", "vision_model", {**both, "vision_config": convolutions}),
    ("Git", "GitVisionModel", "image_encoder", {**text, "vision_config": vision}),
    (
        "Flava",
        "FlavaImageModel",
        "image_model",
        {"image_config": vision, "text_config": text, "multimodal_config": blocks, "projection_dim": 16, "hidden_size": 32},
    ),
)
for name, tower_class, tower, settings in MODELS:
    whole_class = getattr(hf, f"{name}Model")
    whole = whole_class(getattr(hf, f"{name}Config")(**settings))
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    whole.save_pretrained(f"{folder}/{name}")
    _, report = whole_class.from_pretrained(f"{folder}/{name}", output_loading_info=True)
    alone = dict(getattr(hf, tower_class).from_pretrained(f"{folder}/{name}").named_parameters())
    saved = dict(getattr(whole, tower).named_parameters())
    same = sum(torch.equal(value, alone[key]) for key, value in saved.items())
    print(f"{tower_class:24s}  {same:3d} of {len(saved):3d} parameters as saved; the whole model misses {len(report['missing_keys'])}")
PY
"$work/venv/bin/python" -W ignore "$work/run.py" "$work"
