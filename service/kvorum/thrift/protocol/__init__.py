"""
Bytes and fields: what a Thrift message is, before anybody asks what it means.

`scanner` finds the end of any message and refuses what must not reach a decoder; `fast` decodes the four hot shapes;
`codec` is the only place that touches thriftpy2; `replies` builds the fixed replies from templates.
"""
