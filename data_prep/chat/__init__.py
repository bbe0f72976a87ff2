"""Fine-tuning data: conversations, prompts with completions, pairs of answers; masked exact to the token.

    record -> `Exchange` (records.py) of messages in one shape (messages.py, tools.py)
    -> text by the tokenizer's own template (template.py), which leaves out nothing of it (written.py)
    -> the spans that a model is to write (spans.py), and where it may be cut (restarts.py)
    -> ids and mask (encode.py)

What can't be proven is refused, for the record with a counted reason or for the corpus with a sentence.
"""
