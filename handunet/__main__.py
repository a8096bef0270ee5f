"""`python -m handunet` is the command `handunet`."""

from handunet.command import main

main()
