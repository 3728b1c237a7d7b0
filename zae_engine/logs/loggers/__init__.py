"""The loggers, each with its client: W&B, Neptune, TensorBoard, MLflow, Trackio, CSV, and Accelerate's trackers."""
