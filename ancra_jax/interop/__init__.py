"""Weights from and to other libraries.

`reading` opens files, of which `pickles` and `safetensors` are two kinds; `names` has what modules
are called in published codes; `pytorch` turns weights by such names into variables and back.
"""
