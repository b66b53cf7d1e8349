"""A function that does what it is asked to, for tests."""

import json
import os
import sys
import threading
import time

print("loading", flush=True)
if os.environ.get("FAIL_INIT") == "exception":
    raise RuntimeError("cannot begin")
if os.environ.get("FAIL_INIT") == "exit":
    os._exit(7)
if os.environ.get("SLOW_INIT"):
    time.sleep(float(os.environ["SLOW_INIT"]))
if os.environ.get("INTERNAL"):

    def call(method, path, body=None, **headers):
        import http.client

        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers

    INTERNAL = []

    def follow():
        register = lambda events: call("POST", "/2020-01-01/extension/register", json.dumps({"events": events}), Lambda_Extension_Name="inner")
        INTERNAL.append(register(["SHUTDOWN"])[:2])
        status, text, headers = register(["INVOKE"])
        INTERNAL.append((status, json.loads(text)))
        registered.set()
        while True:
            status, text, _ = call("GET", "/2020-01-01/extension/event/next", Lambda_Extension_Identifier=headers["Lambda-Extension-Identifier"])
            INTERNAL.append((status, json.loads(text)))

    registered = threading.Event()
    threading.Thread(target=follow, daemon=True).start()
    registered.wait(5)
if os.environ.get("TERMINATED"):
    import signal

    def follow_signals(pipe):
        os.read(pipe, 1)
        print("the runtime was told to end", flush=True)
        os._exit(0)

    # The main thread waits within AWS's client, which is not Python, and so hears of no signals.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(tell)
    threading.Thread(target=follow_signals, args=(told,), daemon=True).start()
INVOCATIONS = 0
LOCK = threading.Lock()


def hostile(seconds):
    """Asks the host for whatever nobody should, by many connections at once, and counts what it says."""
    import collections
    import random
    import socket

    address = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
    end = time.time() + seconds
    said = collections.Counter()
    extension = "POST /2020-01-01/extension/"
    heads = [
        "GET /2018-06-01/runtime/invocation/next",
        "POST /2018-06-01/runtime/invocation/x/response",
        "POST /2018-06-01/runtime/invocation/../response",
        "POST /2018-06-01/runtime/init/error",
        extension + "register",
        extension + "init/error",
        extension + "exit/error",
        "GET /2020-01-01/extension/event/next",
        "PUT /2022-07-01/telemetry",
        "PUT /2020-08-15/logs",
        "BREW /" + "x" * 5000,
    ]

    def attack(number):
        rng = random.Random(number)
        while time.time() < end:
            try:
                with socket.create_connection((address[0], int(address[1])), timeout=1) as to:
                    kind = rng.randrange(5)
                    if kind == 0:
                        to.sendall(rng.randbytes(3000))
                    elif kind == 1:
                        # A head without an end.
                        for _ in range(100):
                            to.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 65536)
                    elif kind == 2:
                        # A body without an end.
                        to.sendall(heads[rng.randrange(len(heads))].encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                        for _ in range(400):
                            to.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    elif kind == 3:
                        names = "".join(f"{name}: {rng.randrange(1 << 30)}\r\n" for name in ["Lambda-Extension-Name", "Lambda-Extension-Identifier"])
                        body = rng.randbytes(rng.randrange(200))
                        head = f"{heads[rng.randrange(1, len(heads))]} HTTP/1.1\r\nHost: x\r\n{names}Content-Length: {len(body)}\r\n\r\n"
                        to.sendall(head.encode() + body)
                    # The last kind says nothing.
                    said[to.recv(64).split(b"\r\n")[0].decode("latin-1")] += 1
            except OSError as error:
                said[type(error).__name__] += 1

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(60)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return dict(said)


def handler(event, context):
    global INVOCATIONS
    with LOCK:
        INVOCATIONS += 1
    # At once: what carries it may be asked for it between two writes.
    sys.stdout.write(f"got {json.dumps(event)[:200]}\n")
    what = event.get("do") if isinstance(event, dict) else None
    if what == "fail":
        raise ValueError("as asked")
    if what == "exit":
        os._exit(event.get("code", 3))
    if what == "sleep":
        time.sleep(event["seconds"])
    if what == "memory":
        held = bytearray(event["mb"] << 20)
        for at in range(0, len(held), 4096):
            held[at] = 1
    if what == "environment":
        return dict(os.environ)
    if what == "write":
        try:
            with open(event["path"], "wb") as file:
                file.write(b"x" * event["bytes"])
            return {"written": event["bytes"]}
        except OSError as error:
            return {"error": error.strerror}
    if what == "listen":
        import socket

        server = socket.create_server(("0.0.0.0", event["port"]))
        time.sleep(event["seconds"])
        server.close()
    if what == "raw":
        import socket

        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300).close()
            return {"made": True}
        except OSError as error:
            return {"error": error.strerror}
    if what == "hostile":
        return hostile(event["seconds"])
    if what == "seen":
        import urllib.request

        return json.load(urllib.request.urlopen(f"http://sandbox.localdomain:{event['port']}{event.get('path', '/')}"))
    if what == "internal":
        return INTERNAL
    if what == "large":
        return "x" * event["bytes"]
    if what == "length":
        return len(event["text"])
    if what == "connect":
        import socket

        try:
            socket.create_connection((event["host"], event["port"]), timeout=2).close()
            return {"connected": True}
        except OSError as error:
            return {"error": str(error)}
    return {
        "invocations": INVOCATIONS,
        "event": event,
        "id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "remaining": context.get_remaining_time_in_millis(),
        "client": getattr(context.client_context, "custom", None),
        "group": context.log_group_name,
        "stream": context.log_stream_name,
        "memory": int(context.memory_limit_in_mb),
        "name": context.function_name,
        "version": context.function_version,
    }
