"""Labelled structures on disk -> training batches.

`read.py` streams frames of any format, `writer.py` puts them into one HDF5 store, `store.py` reads
its rows back as batches, `sampler.py` cuts an epoch into batches of so many edges, and
`statistics.py`, `check.py` and `consistency.py` look at what is there.
"""
