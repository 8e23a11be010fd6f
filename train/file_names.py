"""Names of the files in a trained model's folder."""

WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
TRAINING = "training.json"
PREDICTIONS = "predictions.csv"
HEAD = "head"  # a folder: of the first part of lp-ft
HISTORY = "history.json"  # in it
