"""`llmtrain init`: a commented run file and corpus file for the text, the model and the machine at hand.

What enters is measured (`Text`) or found (`Machine`); `sizing` makes numbers of it by rules that the files
repeat as comments; `writing` makes the files of the numbers. Read `sizing` first.
"""
