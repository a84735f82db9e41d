"""The kernels of the Numba engine.

``vectors.py`` is the vocabulary: LLVM vectors of 16 float32 or 8 float64, on every machine, with Python's operators.
Functions over them (``mathematics.py``, ``rows.py``, ``lanes.py`` ...) run once, when Numba compiles a caller, and
leave their instructions behind: so a loop is a vector loop because it was written as one, sums have one order, and no
flag that lets a compiler reorder arithmetic is needed. What decides and walks (``positions.py``, ``blocks.py`` ...)
is ordinary Numba, on addresses and strides. Every function takes a number of the compute type first, which stands for
that type.
"""
