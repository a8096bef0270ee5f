"""How fast the project is, beside the plain way of doing the same: `python -m benchmarks`.

Every way of doing something runs in a process of its own (`worker.py`), so that no way's settings, memory or threads touch
another's; they take turns, so that whatever else the machine does touches all alike.
"""
