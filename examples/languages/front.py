#!/usr/bin/env python3
"""front: an API Gateway written from the protocol alone, with Python's standard library.

Each connection to its first socket becomes a session over its first plug, and what one
side says the other one hears. It never says hello: its agent knows it by its first
session_request.

usage: front.py SERVICE_NAME INSTANCE_ID NETWORK_ADDRESS SOCKET_CONFIGURATION PLUG_CONFIGURATION
"""

import itertools
import os
import queue
import socket
import sys
import threading
import time

NAME, INSTANCE, ADDRESS, SOCKETS, PLUGS = sys.argv[-5:]
SOCKET, PORT = SOCKETS.split(" & ")[0].split(", ")
PLUG, DEST_SOCKET, DEST_SERVICE = PLUGS.split(" & ")[0].split(", ")
MANY = int(os.environ.get("MANY_SESSIONS", 100))  # so many are an overload


class Agent:
    """The connection to the agent of this node: one line is one message."""

    def __init__(self):
        host, port = os.environ.get("SSMMP_AGENT", "localhost:55556").rsplit(":", 1)
        self.address = (host.strip("[]"), int(port))
        self.ids = itertools.count(1)
        self.lock = threading.Lock()  # guards what follows
        self.connection = None
        self.connected = threading.Event()  # for the first time
        self.waiting = {}  # queues of those who wait for a response, by message_id

    def send(self, kind, message_id, sub_type, **lines):
        head = {"type": kind, "message_id": message_id, "sub_type": sub_type}
        line = " ~ ".join(f"{name}: {value}" for name, value in {**head, **lines}.items())
        with self.lock:
            try:
                self.connection.sendall((line + "\n").encode())
                return True
            except (AttributeError, OSError):
                return False  # the agent is away: what is said now is lost

    def ask(self, kind, sub_type, timeout, **lines):
        """Sends a request and returns its message_id and the response, {} if none came."""
        message_id, answer = next(self.ids), queue.Queue()
        self.waiting[message_id] = answer
        try:
            sent = self.send(kind, message_id, sub_type, **lines)
            return message_id, answer.get(timeout=timeout) if sent else {}
        except queue.Empty:
            return message_id, {}
        finally:
            del self.waiting[message_id]

    def run(self, handle):
        """Reads messages for ever, and comes back to an agent that was away."""
        while True:
            try:
                with socket.create_connection(self.address) as connection:
                    self.connection = connection
                    self.connected.set()
                    for line in connection.makefile(encoding="ascii", newline="\n"):
                        m = dict(part.split(": ", 1) for part in line.rstrip("\n").split(" ~ "))
                        if m["message_id"].isdigit() and int(m["message_id"]) in self.waiting and m["type"] == "session_response":
                            self.waiting[int(m["message_id"])].put(m)
                        else:
                            handle(m)
            except OSError:
                pass
            self.connection = None
            time.sleep(1)


agent = Agent()
sessions = {}  # by their plug's port: both connections, and who closed them


def serve(user):
    """Serves one connection of a user."""
    with user:
        # Whoever says nothing is no user: the agent looks whether the port listens.
        first = user.recv(65536)
        if first:
            relay(user, first)


def relay(user, first):
    message_id, r = agent.ask(
        "session_request", "service_to_agent", 60,
        source_service_name=NAME, source_service_instance_id=INSTANCE, source_service_instance_network_address=ADDRESS,
        source_plug_name=PLUG, dest_service_name=DEST_SERVICE, dest_socket_name=DEST_SOCKET)
    if r.get("status") != "200":
        return
    source = {"source_service_name": NAME, "source_service_instance_id": INSTANCE}
    try:
        session = socket.create_connection(
            (r["dest_service_instance_network_address"], int(r["dest_socket_port"])), 10, source_address=(ADDRESS, 0))
    except OSError:
        agent.send("session_ack", message_id, "service_to_agent", **source, source_plug_port="", dest_socket_new_port="", status=502)
        return
    session.settimeout(None)
    plug_port, new_port = session.getsockname()[1], session.getpeername()[1]
    sessions[plug_port] = (user, session)
    agent.send("session_ack", message_id, "service_to_agent", **source,
               source_plug_port=plug_port, dest_socket_new_port=new_port, status=200)
    status = 111  # closed by business logic
    try:
        session.sendall(first)
        threading.Thread(target=pump, args=(user, session), daemon=True).start()
        pump(session, user)
    except OSError:
        status = 122  # the connection broke
    end(user)
    end(session)
    session.close()
    if sessions.pop(plug_port, None):  # else the Manager had it closed, and knows
        agent.send("source_service_session_close_info", next(agent.ids), "source_service_to_agent", **source,
                   source_service_instance_network_address=ADDRESS, source_plug_name=PLUG, source_plug_port=plug_port,
                   dest_service_name=DEST_SERVICE, dest_service_instance_id=r["dest_service_instance_id"],
                   dest_service_instance_network_address=r["dest_service_instance_network_address"],
                   dest_socket_name=DEST_SOCKET, dest_socket_port=r["dest_socket_port"], dest_socket_new_port=new_port,
                   status=status)


def pump(source, to):
    """Passes on what one side says until it has said all."""
    try:
        while data := source.recv(65536):
            to.sendall(data)
    finally:
        end(to, socket.SHUT_WR)


def end(connection, how=socket.SHUT_RDWR):
    """Ends a connection in one direction or both, whoever reads or writes there."""
    try:
        connection.shutdown(how)
    except OSError:
        pass


def handle(m):
    """Does what the Manager asks, by way of the agent."""
    if m["type"] == "service_instance_health_request":
        agent.send("service_instance_health_response", m["message_id"], "service_instance_to_agent",
                   service_instance_id=INSTANCE, status=199 if len(sessions) >= MANY else 200)
    elif m["type"] == "source_service_session_close_request":
        both = sessions.pop(int(m["source_plug_port"]), None)
        for connection in both or ():
            end(connection)
        agent.send("source_service_session_close_response", m["message_id"], "source_service_to_agent", status=200 if both else 404)
    elif m["type"] == "graceful_shutdown_request":
        agent.send("graceful_shutdown_response", m["message_id"], "service_instance_to_agent", status=200)
        os._exit(0)


threading.Thread(target=agent.run, args=(handle,), daemon=True).start()
agent.connected.wait()
listener = socket.create_server((ADDRESS, int(PORT)), backlog=128, family=socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET)
while True:
    user, _ = listener.accept()
    threading.Thread(target=serve, args=(user,), daemon=True).start()
