"""A checkpoint becomes a Hugging Face folder, proven equal before anybody gets it."""

from llmtrain.export.hub_folder import Exported, export

__all__ = ["Exported", "export"]
