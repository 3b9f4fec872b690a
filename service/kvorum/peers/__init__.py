"""
Node-to-node links: own frames over TCP, a handshake that refuses strangers by name, bounded queues.

It does not know what the frames mean; `consensus` does. Begin with `tcp.TcpPeerLinks`; the bytes are in `frames`.
"""
