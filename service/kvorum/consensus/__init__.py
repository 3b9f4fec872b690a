"""
ConsensusManager: drives one pure algorithm and carries out its effects, in order.

`manager` is the door and the only writer of the machine; `proposals` keeps the writes that wait for their entry,
`reads` those that wait for an index, `applier` feeds the state machine in slices, `birth` decides whether an empty
directory may take part in forming a cluster, `contacts` knows when each peer was last heard. Nothing here opens a
socket, a file or a thread: those come in through `core.ports`.
"""
