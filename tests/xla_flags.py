"""XLA flags of all tests: most of the time goes into compiling programs that run once."""

import importlib.metadata

COMPILED_QUICKLY = "--xla_backend_optimization_level=0"
# XLA's older code for fused loops compiles faster. Later versions lack this flag, and would abort.
if importlib.metadata.version("jaxlib") == "0.10.2":
    COMPILED_QUICKLY += " --xla_cpu_use_fusion_emitters=false"
