"""What is done to documents between reading and tokenizing, a file per step.

A step takes documents and gives documents; what it leaves out it drops in the tally, with a reason that
begins with the step's name. To add one: a file here with its section and `make`, and two lines in
`registry.py`. A step that must see the whole corpus first is a `CorpusWideStep`.
"""
