"""Folders of runs as a table and as a page.

video_run.py reads a run, groups.py finds which belong together, runs.py measures. table.py writes text, page.py the
page of one request, and beside.py that of several, which is the grid of grid.py.
"""
