"""``python -m kvorum`` is the ``kvorum`` command."""

from kvorum.cli import main

if __name__ == "__main__":
    main()
