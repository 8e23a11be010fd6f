"""Entry point of ``python -m train``."""

import sys

if __name__ == "__main__":
    try:
        from train.cli import main

        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the command has begun, while modules are imported
        sys.exit(130)
