"""inferd: one warm model for every program on a machine.

The tree, in the order in which a request walks through it: ``fastpath`` cuts lines and encodes frames;
``wire`` knows what the bytes mean and ``serve`` moves them; ``engine`` makes the text; ``store`` brings and
verifies models; ``daemon`` puts them together; ``client`` and ``cli`` are the other end of the socket.
"""

__version__ = "0.1.0"
