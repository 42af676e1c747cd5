"""report.html: what a run found and how sure that is, from what its folder holds, whole or half done.

folder.py reads, networks.py knows the networks that are compared, charts.py and sketch.py draw,
pictures.py detects on some images, page.py puts it together. Nothing here decides about a search.
"""
