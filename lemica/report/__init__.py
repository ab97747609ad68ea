"""A folder of runs as a table and as a page: runs.py reads and measures, table.py and page.py write."""
