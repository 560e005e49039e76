"""A server under fire: clients of all APIs, and harm to its engine, its workers and its clients at the same time.

`python -m tests.chaos --minutes N`. Every request must be answered or failed, and in the end nothing may be
left of any.
"""
