"""llmtrain: a folder of text becomes a model on the Hub, on any number of GPUs, from one file."""

__version__ = "0.3.1"
