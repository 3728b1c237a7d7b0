"""What a step costs on a GPU; run as ``python -m tests.benchmarks.gpu``."""
