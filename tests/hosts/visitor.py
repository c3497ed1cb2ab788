"""A process without rights here, who tries every listening socket that it is told of. Run by test_intruders.

    python visitor.py MARK ADDRESS:PORT ...

Gives root up and says, in JSON, what each socket answered: to nothing, to the number that a rank begins with, to
torch's TCPStore, and to ZeroMQ's greeting without a key. To those that speak ZeroMQ it sends a forged request, signed
with no key, to write MARK.
"""

import encodings.idna  # noqa: F401  # what needs root's files is loaded before root is given up
import json
import os
import socket
import struct
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import zmq

OTHER_UID = 12345
PATIENCE_S = 1.5
CONTEXT = zmq.Context()
ZMTP = b"\xff" + bytes(8) + b"\x7f\x03"
SPEECHES = {
    "nothing": b"",
    "a rank's number": struct.pack("q", 1),
    "TCPStore": bytes([10]) + struct.pack("=I", 0x3C85F7CE) + bytes([8]),
    "ZeroMQ": ZMTP,  # and not which mechanism: who is told of another one hangs up
}


def speak(end, speech):
    """What came back, as far as it came; None where nobody took the connection."""
    heard = b""
    try:
        connection = socket.create_connection(end, PATIENCE_S)
    except OSError:
        return None
    with suppress(OSError), connection:
        connection.sendall(speech)
        while len(heard) < 64 and (data := connection.recv(1 << 12)):
            heard += data
    return heard


def forge(end, mark):
    """Send a message as Jupyter's clients do, with a wrong signature; returns whether anything came back."""
    code = f"open({mark!r}, 'w')"
    header = {
        "msg_id": uuid.uuid4().hex,
        "session": "x",
        "username": "x",
        "msg_type": "execute_request",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    dealer = CONTEXT.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect("tcp://{}:{}".format(*end))
    with suppress(zmq.Again):  # it has hung up already: ZeroMQ then has nobody to send to
        for signature in (b"", b"0" * 64):
            dealer.send_multipart([b"<IDS|MSG>", signature, *parts], zmq.NOBLOCK)
    return bool(dealer.poll(int(PATIENCE_S * 1000)))


def visit(end, mark):
    heard = {name: speak(end, speech) for name, speech in SPEECHES.items()}
    if all(answer is None for answer in heard.values()):
        return "takes no connection"
    if any(answer and answer[0] == 0xFF for answer in heard.values()):
        mechanism = (heard["ZeroMQ"] or b"")[12:32].rstrip(b"\0").decode(errors="replace") or "it does not say what"
        return f"ZeroMQ, wants {mechanism}" + "; answers a forged message" * forge(end, mark)
    said = [name for name, answer in heard.items() if answer]
    return f"answers to {', '.join(said)}" if said else "says nothing"


def main(mark, *ends):
    os.setgroups([])
    os.setgid(OTHER_UID)
    os.setuid(OTHER_UID)
    chosen = [(address, int(port)) for address, _, port in (end.rpartition(":") for end in ends)]
    with ThreadPoolExecutor(len(chosen)) as pool:
        answers = pool.map(lambda end: visit(end, mark), chosen)
        print(json.dumps(dict(zip(ends, answers, strict=True))), flush=True)
    os._exit(0)  # ZeroMQ may wait for connections that never come about


if __name__ == "__main__":
    main(*sys.argv[1:])
