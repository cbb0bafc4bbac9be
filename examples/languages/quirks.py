#!/usr/bin/env python3
"""quirks: a service with the quirks of the published reference code (PROTOCOL section 2).

It finds the lines of a message by their position, names some as the reference code
does, and is careless with separators. Each session to its first socket becomes one over
its first plug; "quit" ends the instance by business logic.

usage: quirks.py SERVICE_NAME INSTANCE_ID NETWORK_ADDRESS SOCKET_CONFIGURATION PLUG_CONFIGURATION
"""

import os
import queue
import socket
import sys
import threading

NAME, INSTANCE, ADDRESS, SOCKETS, PLUGS = sys.argv[1:]
PORT = int(SOCKETS.split(" & ")[0].split(", ")[1])
PLUG, DEST_SOCKET, DEST_SERVICE = PLUGS.split(" & ")[0].split(", ")
MANY = int(os.environ.get("MANY_SESSIONS", 100))  # so many are an overload

host, port = os.environ.get("SSMMP_AGENT", "localhost:55556").rsplit(":", 1)
agent = socket.create_connection((host.strip("[]"), int(port)))
lock = threading.Lock()
last_id = 1000
responses = {}  # queues, by message_id
plugs = {}  # both connections of a session, by the plug's port


def send(*lines):
    """A space before the type, a separator after the last line, CR LF."""
    with lock:
        agent.sendall((" " + " ~ ".join(lines) + " ~ \r\n").encode())


def next_id():
    global last_id
    with lock:
        last_id += 1
        return last_id


def session(client):
    first = client.recv(65536)
    if not first:
        client.close()  # the agent looked whether the port listens
        return
    if first.strip() == b"quit":
        terminate()
    message_id = next_id()
    responses[message_id] = queue.Queue()
    send("type: session_request", f"message_id: {message_id}", "sub_type: service_to_agent",
         f"source_service_name: {NAME}", f"source_service_instance_id: {INSTANCE}",
         f"source_service_instance_network_address: {ADDRESS}", f"source_plug_name: {PLUG}",
         f"dest_service_name: {DEST_SERVICE}", f"dest_socket_name: {DEST_SOCKET}")
    dest_id, dest_address, dest_port, status = responses[message_id].get()
    if status != "200":
        client.close()
        return
    plug = socket.create_connection((dest_address, int(dest_port)), source_address=(ADDRESS, 0))
    plug_port, new_port = plug.getsockname()[1], plug.getpeername()[1]
    plugs[plug_port] = (client, plug)
    # service_name and service_instance_id stand for source_...
    send("type: session_ack", f"message_id: {message_id}", "sub_type: service_to_agent",
         f"service_name: {NAME}", f"service_instance_id: {INSTANCE}",
         f"source_plug_port: {plug_port}", f"dest_socket_new_port: {new_port}", "status: 200")
    plug.sendall(first)
    threading.Thread(target=copy, args=(client, plug), daemon=True).start()
    copy(plug, client)
    if plugs.pop(plug_port, None):
        send("type: source_service_session_close_info", f"message_id: {next_id()}", "sub_type: source_service_to_agent",
             f"source_service_name: {NAME}", f"source_service_instance_id: {INSTANCE}",
             f"source_service_instance_network_address: {ADDRESS}", f"source_plug_name: {PLUG}", f"source_plug_port: {plug_port}",
             f"dest_service_name: {DEST_SERVICE}", f"dest_service_instance_id: {dest_id}",
             f"dest_service_instance_network_address: {dest_address}", f"dest_socket_name: {DEST_SOCKET}",
             f"dest_socket_port: {dest_port}", f"dest_socket_new_port: {new_port}", "status: 111")


def copy(source, to):
    try:
        while data := source.recv(65536):
            to.sendall(data)
    except OSError:
        pass
    shut(source)
    shut(to)


def shut(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def terminate():
    # source_service_instance_network_address stands for service_instance_network_address.
    send("type: service_instance_termination_info", f"message_id: {next_id()}", "sub_type: service_instance_to_agent",
         f"service_name: {NAME}", f"service_instance_id: {INSTANCE}", f"source_service_instance_network_address: {ADDRESS}")
    os._exit(0)


def from_agent():
    for line in agent.makefile():
        values = [part.split(":", 1)[1].strip() for part in line.rstrip("\n").split(" ~ ")]
        kind, message_id = values[0], values[1]
        if kind == "session_response":
            responses[int(message_id)].put((values[6], values[8], values[9], values[10]))
        elif kind in ("health_control_request", "service_instance_health_request"):
            send("type: health_control_response", f"message_id: {message_id}", "sub_type: service_instance_to_agent",
                 f"service_instance_id: {INSTANCE}", "status: 199" if len(plugs) >= MANY else "status: 200")
        elif kind == "source_service_session_close_request":
            for connection in plugs.pop(int(values[7]), ()):
                shut(connection)
            send("type: source_service_session_close_response", f"message_id: {message_id}",
                 "sub_type: source_service_to_agent", "status: 200")
        elif kind == "graceful_shutdown_request":
            send("type: graceful_shutdown_response", f"message_id: {message_id}",
                 "sub_type: service_instance_to_agent", "status: 200")
            os._exit(0)
    os._exit(1)  # without its agent it is nothing


listener = socket.create_server((ADDRESS, PORT), family=socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET)
threading.Thread(target=from_agent, daemon=True).start()
while True:
    client, _ = listener.accept()
    threading.Thread(target=session, args=(client,), daemon=True).start()
