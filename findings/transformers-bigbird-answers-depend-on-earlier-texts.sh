#!/usr/bin/env bash
# Guessed: a BigBird in evaluation gives the same answer to the same text at every call.
# True: it depends on the texts before. A batch too short for block-sparse attention (5 + 2 · num_random_blocks blocks or fewer) switches the
# model to full attention for good: BigBirdModel.forward calls set_attention_type("original_full") on itself and never goes back. From then
# on long texts too are read with full attention. model.config still says block_sparse, and a saved copy starts with it again.
# Versions: transformers==5.23.0, torch==2.13.0 (CPU build), numpy==2.4.6. Date: 2026-11-29.
# Who meets it: whoever compares a fine-tuned BigBird with its saved copy, or a pipeline's answers in two orders of the same texts.
# Output seen:
#   same text, before and after a short one: [-0.0895, 0.1766] [-0.0901, 0.1749] block_sparse original_full
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
# torch==2.13.0: here the CPU build.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.23.0
cat > "$work/run.py" <<'PY'
import warnings

import torch
from transformers import BigBirdConfig, BigBirdForSequenceClassification

warnings.filterwarnings("ignore")
torch.manual_seed(0)
config = BigBirdConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, block_size=4, num_random_blocks=1,
)
model = BigBirdForSequenceClassification(config).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
long, short = torch.randint(1, 100, (1, 200)), torch.randint(1, 100, (1, 8))
with torch.inference_mode():
    before = model(long).logits
    model(short)
    after = model(long).logits
print("same text, before and after a short one:", [round(float(x), 4) for x in before[0]], [round(float(x), 4) for x in after[0]], model.config.attention_type, model.bert.attention_type)
assert not torch.allclose(before, after, atol=1e-6) and model.bert.attention_type == "original_full"
PY
"$work/venv/bin/python" "$work/run.py"
