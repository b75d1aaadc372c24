"""Fragments: the surroundings of an atom of a frame too large for DFT, cut out and completed to what DFT can do."""
