"""The working set: a fixed room on the device that queued systems enter and finished ones leave.

capacity.py     how many edges fit, measured once
checkpoint.py   a run directory that survives kill -9
pack.py         picking and joining the systems of packed records
pool.py         the loop that admits, advances, retires and saves
progress.py     a bar, or lines, on stderr
queue.py        jobs in their order
"""
