"""kvorum: a transactional key-value store kept by consensus; begin reading at `kvorum.core`, then `kvorum.app`."""

__version__ = "0.1.0"
