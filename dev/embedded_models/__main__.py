"""``python -m dev.embedded_models``."""

import sys

from dev.embedded_models.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
