"""What caching cost a video: metrics.py measures two videos, compare.py puts several into a table."""
