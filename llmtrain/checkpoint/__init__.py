"""One checkpoint for every topology: slices of canonical tensors, a manifest, and a COMMIT written last."""

from llmtrain.checkpoint.background import SaveEnd, Saver
from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.checkpoint.load import Checkpoint, newest, open_checkpoint, passed_over
from llmtrain.checkpoint.probe import Probe, take_probe
from llmtrain.checkpoint.save import save

__all__ = [
    "Checkpoint",
    "CheckpointFacts",
    "Probe",
    "SaveEnd",
    "Saver",
    "newest",
    "open_checkpoint",
    "passed_over",
    "save",
    "take_probe",
]
