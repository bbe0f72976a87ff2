"""llmtrain: a folder of text becomes a model on the Hub, on any number of GPUs, from one file."""

import sys

__version__ = "0.4.0"

if sys.argv[:1] == ["-m"]:  # `python -m llmtrain…` is looking for its module, as every launcher starts ranks
    from llmtrain.config.search_path import leave_out_working_folder

    leave_out_working_folder()
    del leave_out_working_folder
