"""LeMiCa (arXiv 2511.00090): how step masks are made and judged; generation never imports this package."""
