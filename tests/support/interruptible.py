"""``python -m featurize`` in a process that Ctrl-C can always interrupt."""

# A shell ignores SIGINT in background jobs, and so would their children.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("featurize", run_name="__main__")
"""
