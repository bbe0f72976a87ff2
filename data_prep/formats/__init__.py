"""Token files of other tools, a file each: read as mapped arrays, written from blocks of documents.

megatron   .bin and .idx        Megatron-LM, Megatron-DeepSpeed, GPT-NeoX, NeMo
datatrove  .ds and .ds.index    datatrove, nanotron
olmo       .npy, headerless     dolma, OLMo-core
nanogpt    .bin, uint16         nanoGPT
parquet    a column input_ids   transformers, TRL, anything else
"""
