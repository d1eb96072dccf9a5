"""Asks a server for a streamed completion whenever a line comes in, and writes what it took.

    python benchmarks/streaming_client.py PORT BODY

A process of its own for benchmarks/serving.py, light, so that it takes no time from the server. Writes a line
of JSON an answer: its tokens, and the seconds from the connection to the end of the stream.
"""

import json
import re
import socket
import sys
import time

COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


def answer(port: int, body: bytes) -> dict[str, float]:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    received = bytearray()
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        while piece := connection.recv(1 << 16):
            received += piece
    seconds = time.perf_counter() - began
    tokens = COMPLETION_TOKENS.search(received)
    assert tokens, f"no whole answer: {received[-300:]!r}"
    return {"tokens": int(tokens[1]), "seconds": seconds}


def main() -> None:
    port, body = int(sys.argv[1]), sys.argv[2].encode()
    for _ in sys.stdin:
        print(json.dumps(answer(port, body)), flush=True)


if __name__ == "__main__":
    main()
