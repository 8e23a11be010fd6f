"""``python -m featurize.emoji``."""

import sys

from featurize.emoji.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
