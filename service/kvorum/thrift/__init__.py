"""
The client edge: Thrift bytes in, operations and reads out, replies in request order.

`server` listens and counts connections, `connection` keeps order on one of them, `protocol` turns bytes into fields and
back, `adapter` judges requests and turns them into operations (contract section 3.1). No consensus is spoken here.
"""
