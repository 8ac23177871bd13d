"""The socially-aware user study (Sec. 4.4.1, Table 3): people rate videos of several methods in a browser.

criteria.py has what is asked and Eq. 14, materials.py the videos, design.py the orders in which they are shown, store.py the
answers, server.py the pages, analysis.py the table and its statistics. Only server.py needs aiohttp.
"""
