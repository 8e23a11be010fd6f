"""Names of the files in a trained model's folder, and of what an audit, few shots, attention and pictures of classes leave in the run."""

WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
TRAINING = "training.json"
PREDICTIONS = "predictions.csv"
HEAD = "head"  # a folder: of the first part of lp-ft
HISTORY = "history.json"  # in it
FOLDS = "folds"  # a folder: of the teachers that were each trained without one fold
OUTPUTS = "outputs.safetensors"  # of a teacher, and in the folder of each fold
AUDIT = "audit.json"
SHOTS_FIGURES = "shots.json"
ATTENTION = "attention.json"  # of what teachers look at; tables --attention writes it
SEEN = "seen.json"  # of pictures of classes; lugpi see writes it
