"""Keep other libraries' import-time advice out of the user's terminal; lugpi says itself, in one line, which device and kernels run."""

import logging
import os
import warnings

_CHATTY_LOGGERS = ("diffusers", "transformers", "xformers", "bitsandbytes", "accelerate", "open_clip", "datasets", "httpx", "root")


def quiet_libraries() -> None:
    """Silence the libraries' own progress bars and advice; their errors still come through, as exceptions and at level ERROR.

    Call once per process, before the first heavy import.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in _CHATTY_LOGGERS:
        logging.getLogger(None if name == "root" else name).setLevel(logging.ERROR)
    for module in ("torch", "transformers", "diffusers", "xformers", "bitsandbytes", "open_clip", "timm", "huggingface_hub"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
