"""
A deterministic world for the real rooms: virtual time, a simulated network, disks that lose what was not synced.

Not shipped. Begin with `loop.VirtualLoop`, then `network.SimulatedNetwork` and `world.World`; `linearizability` judges
histories, simulated or not. One seed gives one history, to the last bit.
"""
