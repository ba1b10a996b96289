"""Crystals from the files of any program: one crystal, or the reason why not, each.

Files are data: classes that a JSON file names are not looked up, nothing is unpickled.
Nothing is left out without a word: what one record holds is an `Item`, and a file whose
records cannot be told apart is refused as a whole.
"""
