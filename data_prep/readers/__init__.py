"""Formats of text, a file each: the bytes of a file in, records out, in memory that is bounded.

Nothing is decided here about what a document is: a reader cuts a file into records and says, in a record's
place, what it could not read. Nothing in an archive is ever written to disk.
"""
