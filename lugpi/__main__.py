"""Entry point of ``python -m lugpi``."""

import sys

if __name__ == "__main__":
    try:
        from lugpi.cli import main
        from lugpi_core.runtime.libraries import this_process_is_ours

        this_process_is_ours()
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the command has begun, while modules are imported
        sys.exit(130)
