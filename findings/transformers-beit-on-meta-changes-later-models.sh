#!/usr/bin/env bash
# Guessed: a forward of a BEiT on torch's meta device (to count FLOPs or shapes before loading the weights) leaves later models alone.
# True: BEiT keeps its index of relative positions in a cache of the class, by window size and not by device. After a forward under
# `with torch.device("meta")` that index is a meta tensor for the rest of the process. Every later BEiT with the same window, loaded
# properly on the CPU, indexes its position biases with it: no error, no warning, and other outputs at each call of the same model
# on the same pixels (with an index on meta, torch 2.13 leaves the indexed CPU tensor unfilled).
# Versions: transformers==5.23.0, torch==2.13.0 (CPU build), numpy==2.4.6. Date: 2026-11-29.
# Who meets it: whoever counts FLOPs or parameters with FlopCounterMode on the meta device, infers a device map or an output shape, and
# then loads the model in the same process: BEiT, data2vec-vision and what is built on them (the same method and cache).
# A forward outside the `with`, on meta inputs, is harmless: the index is then made on the CPU.
# Output seen (the second line differs from run to run):
#   alone:            -96.366795 -96.366795 -96.366795 equal: True
#   after meta:       -96.368764 -96.332925 -96.302147 equal: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
# torch==2.13.0: here the CPU build.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/run.py" <<'PY'
import sys
import warnings

import torch
from transformers import BeitConfig, BeitModel

warnings.filterwarnings("ignore")
config = BeitConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    image_size=48, patch_size=8, use_relative_position_bias=True,
)
if "meta" in sys.argv:  # count FLOPs or shapes, as one does before loading a large model
    with torch.device("meta"), torch.inference_mode():
        BeitModel(config)(torch.zeros(1, 3, 48, 48))

torch.manual_seed(0)
model = BeitModel(config).eval()
for name, parameter in model.named_parameters():
    torch.nn.init.normal_(parameter, std=0.1)
pixels = torch.rand(1, 3, 48, 48)
with torch.inference_mode():
    outputs = [model(pixels).last_hidden_state for _ in range(3)]
are_equal = torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])
print(" ".join(f"{output.double().sum():.6f}" for output in outputs), "equal:", are_equal)
assert are_equal == ("meta" not in sys.argv)
PY
printf 'alone:            '
"$work/venv/bin/python" "$work/run.py"
printf 'after meta:       '
"$work/venv/bin/python" "$work/run.py" meta
