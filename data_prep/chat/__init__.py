"""Fine-tuning data: conversations, prompts with completions, pairs of answers; masked exact to the token.

    record -> `Exchange` (records.py) -> text by the tokenizer's own template (template.py)
    -> the spans of it that a model is to write (spans.py) -> ids and mask (encode.py)

What can't be proven is refused, for the record with a counted reason or for the corpus with a sentence.
"""
