"""
Everything that touches this node's disk: the storage engines, the consensus log (`wal`) and the data directory.

The only room that may import RocksDB. It knows bytes and files and nothing of clusters: which write is legal and what
an entry means is decided above. Begin with `DESIGN.md`, then `data_directory`, `rocksdict_engine` and
`wal.segmented_log`; `docs/formats/log.md` says every byte.
"""
