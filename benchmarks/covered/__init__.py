"""What `benchmarks/coverage.py` is made of: the models, the two pruners, and a check that trusts neither."""
