"""Uploads: files of strangers become checked Parquet, in a process of their own.

``conversion`` is the gateway's side; ``python -m service.uploads`` is the child, which alone
imports pyarrow. What both sides know of each other stands in ``exchange``.
"""
