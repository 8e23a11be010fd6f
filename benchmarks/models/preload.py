"""What every architecture's process needs, imported once: they are forked from a process that has imported this module."""

from importlib import import_module

from lugpi_core.runtime.libraries import prepare_libraries

prepare_libraries()
for _module in ("transformers.pipelines", "onnxruntime", "onnxscript", "torch.onnx", "benchmarks.models.journey"):
    import_module(_module)
