#!/usr/bin/env python3
"""Listens at one token and prints a line for every message: export_client.py URL

The first line is "open", the last "closed CODE". Exits 3 when the websockets package is missing.
"""
import asyncio
import sys

sys.path.pop(0)  # websockets.py beside this file is a test, not the package
try:
    import websockets
except ImportError:
    sys.exit(3)


async def listen(url):
    async with websockets.connect(url) as session:
        print("open", flush=True)
        async for message in session:
            print(message, flush=True)
        print("closed", session.close_code, flush=True)


asyncio.run(asyncio.wait_for(listen(sys.argv[1]), 60))
