"""The version, by itself so that every module can name it."""

__version__ = "0.9.0"
