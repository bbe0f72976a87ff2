"""Checkpoints of other tools: DeepSpeed's come in, DeepSpeed's universal ones and torch's DCP go out."""
