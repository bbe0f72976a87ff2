"""`python -m llmtrain` is the `llmtrain` command."""

from llmtrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
