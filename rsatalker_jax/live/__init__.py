"""A live conversation in the browser: somebody speaks, and a generated face listens and answers.

protocol.py  what page and server say to each other over a WebSocket
voice.py     B's sound, frame by frame, and when A interrupts it
worker.py    the generator in a process of its own
engine.py    what runs there: a trained run
seen.py      A's motion, which a camera sees at times
server.py    the web application: it needs aiohttp
camera.py    what it serves for A's camera
tracker.py   where the camera's tracker is from
"""
