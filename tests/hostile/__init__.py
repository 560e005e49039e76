"""Attacks on a running server, one a file: `python -m tests.hostile.NAME http://127.0.0.1:8000`.

Each has a function `attack(target)`, which returns what it saw, and fails where the server held more memory than the
attack may cost it, or a neighbour did not come on. `test_attacks.py` runs them all. They are for servers of your own.
"""
