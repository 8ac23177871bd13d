"""The page on which people label how the two of a conversation are related: table.py keeps the labels, server.py shows the page.

Only server.py needs aiohttp.
"""
