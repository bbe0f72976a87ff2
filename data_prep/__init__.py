"""Text becomes shards: documents, sources, steps, tokenizer, build. No torch.

One law: everything between a source and the tokenizer is `Iterator[Document] -> Iterator[Document]`, and
whatever does not come out is counted under a reason.
"""
