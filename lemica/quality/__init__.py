"""What caching costs: compare.py puts videos into a table, evaluate.py makes them itself, metrics.py measures both."""
